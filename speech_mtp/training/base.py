"""What the training loop knows of a task: parameters, one step, one evaluation.

A task is handed a batch number and never keeps a stream of its own, so a run that was killed and resumed sees
the same batches, draws the same random numbers and gives the same loss curve.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn


class Task(ABC):
    """One kind of training. ``modules`` are saved in checkpoints; ``optimizers`` belong to the task."""

    modules: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]

    @abstractmethod
    def step(self, number: int, learning_rate: float) -> Mapping[str, float | Tensor]:
        """Draw batch ``number``, update the parameters once, return named scalars for the log.

        A scalar on a device is read when the log needs it: reading it would make every step wait for the device.
        """

    @abstractmethod
    def evaluate(self) -> dict[str, float]:
        """Named scalars on the development split."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Write the trained model as an inference checkpoint into an existing folder."""
