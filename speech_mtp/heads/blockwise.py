"""Blockwise parallel decoding (Stern et al. 2018, arXiv:1811.03115, section 6): one wide layer, one residual per head.

The layer ``W2 relu(W1 h)`` is k times as wide as an ordinary one and has k outputs for k heads; head j is the trunk's
own unembedding of ``h`` plus output j. The paper speaks of a single layer, so the maps are dense: every output reads
the hidden units of all heads (a block-diagonal ``W2`` would be k separate heads, as Medusa's are). The paper's first
output, the next token, is left out: the trunk's own output layer stays exact. ``W2`` starts at zero, so an untrained
head is the next-token layer.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp.heads.base import ParallelHead, TrunkShape


class Blockwise(ParallelHead):
    """``num_heads`` outputs of one feed-forward layer with ``num_heads * hidden_size`` hidden units.

    ``hidden_size`` defaults to the width of the trunk's own feed-forward layers, as in the paper.
    """

    identity_at_start = True

    def __init__(
        self,
        shape: TrunkShape,
        num_heads: int = 4,
        hidden_size: int | None = None,
        taps: tuple[int, ...] = (-1,),
        feed: str = "last",
        draft_vocab: int | None = None,
    ) -> None:
        super().__init__(shape, tuple(range(2, 2 + num_heads)), taps, feed, draft_vocab)
        width = num_heads * (hidden_size or shape.intermediate_size)
        self.up = nn.Linear(shape.dim, width)
        self.down = nn.ModuleList(nn.Linear(width, shape.dim) for _ in range(num_heads))
        for layer in self.down:
            nn.init.zeros_(layer.get_parameter("weight"))
            nn.init.zeros_(layer.get_parameter("bias"))

    def ahead(self, hidden: Tensor, j: int) -> Tensor:
        out: Tensor = hidden + self.down[j](F.relu(self.up(hidden)))
        return out
