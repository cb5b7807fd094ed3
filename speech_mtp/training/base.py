"""What the training loop knows of a task: parameters, one step, one evaluation.

A task is handed a batch number and never keeps a stream of its own, so a run that was killed and resumed sees
the same batches, draws the same random numbers and gives the same loss curve.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn


class Scalars(Mapping[str, float]):
    """Named numbers that ``make`` computes when somebody looks at them: on a GPU a step that is not logged then waits
    for nothing."""

    def __init__(self, make: Callable[[], dict[str, float]]) -> None:
        self._make = make

    @cached_property
    def _made(self) -> dict[str, float]:
        return self._make()

    def __getitem__(self, name: str) -> float:
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


class Task(ABC):
    """One kind of training. ``modules`` are saved in checkpoints; ``optimizers`` belong to the task.

    ``tokens_per_step``, of all processes together, is for the log (None: steps tell enough)."""

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    tokens_per_step: int | None = None

    @abstractmethod
    def step(self, number: int, learning_rate: float) -> Mapping[str, float | Tensor]:
        """Draw batch ``number``, update the parameters once, return named scalars for the log.

        A scalar on a device is read when the log needs it, for reading makes a step wait for the device; those that
        must be computed first are :class:`Scalars`.
        """

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Named scalars on the development split."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the trained model as an inference checkpoint into an existing folder."""


def begin_step(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give every group of parameters its rate (times its own ``scale``, where it has one), and forget gradients."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("scale", 1.0)
    optimizer.zero_grad(set_to_none=True)
