"""A frozen trunk's states of rows that it has read, kept in memory: from the second pass on nothing is read again.

On a small machine the trunk is much of the work of training a head. What is kept is what the trunk gave, in its own
precision; a token takes ``taps x D`` numbers, which for SmolLM2-135M and three taps in bf16 are 3.5 KB.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class KeptStates:
    """Rows by number, at most ``limit_bytes`` of them; others are read every time."""

    def __init__(self, limit_bytes: float) -> None:
        self.left = limit_bytes
        self._rows: dict[int, Tensor] = {}

    def find(self, rows: Sequence[int], length: int) -> Tensor | None:
        """The states of ``rows`` with zeros behind them ``[B, length, taps, D]``; None if one of them is not kept."""
        if not all(row in self._rows for row in rows):
            return None
        hidden = nn.utils.rnn.pad_sequence([self._rows[row] for row in rows], batch_first=True)
        return F.pad(hidden, (0, 0, 0, 0, 0, length - hidden.shape[1]))

    def keep(self, rows: Sequence[int], hidden: Tensor, lengths: Tensor) -> None:
        """Copies of the first ``lengths [B]`` positions of ``hidden [B, T, taps, D]``, as long as there is room."""
        for row, length, states in zip(rows, lengths.tolist(), hidden, strict=True):
            size = states[:length].numel() * states.element_size()
            if row not in self._rows and size <= self.left:
                self._rows[row] = states[:length].detach().clone()
                self.left -= size
