"""Named loss terms of language models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor

from speech_mtp.lm.group_lm import GroupLM
from speech_mtp.types import LMOutput, Positions


class Objective(ABC):
    """Yields ``(name, term)`` scalars; weights and sums belong to the training loop."""

    @abstractmethod
    def terms(self, lm: GroupLM, out: LMOutput, positions: Positions) -> Iterator[tuple[str, Tensor]]:
        """``out`` are the trunk's hidden states of ``positions``, which carry the labels."""
