"""DSpark (arXiv:2607.05147): DFlash's one pass, and a bias that makes every draft depend on the one before it.

Slot k predicts the token after its own position, so a block has as many slots as drafts. Its scores gain
``W2 W1[previous token]``, a bigram model of low rank; and a confidence head estimates from the slot's state and
``W1[previous token]`` how likely the next draft is kept: one minus half the L1 distance of the two laws.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speech_mtp.heads.base import TrunkShape
from speech_mtp.heads.dflash import DFlash


class DSpark(DFlash):
    """As :class:`~speech_mtp.heads.dflash.DFlash`, with a bigram bias of rank ``rank``, zero at the start."""

    from_anchor = True
    needs_tokens = True

    def __init__(
        self,
        shape: TrunkShape,
        num_drafts: int = 7,
        num_layers: int = 2,
        taps: tuple[int, ...] | None = None,
        feed: str = "concat",
        draft_vocab: int | None = None,
        mask_id: int | None = None,
        rank: int = 64,
    ) -> None:
        super().__init__(shape, num_drafts, num_layers, taps, feed, draft_vocab, mask_id)
        self.before = nn.Embedding(shape.vocab_size, rank)
        self.bias = nn.Linear(rank, self.num_tokens, bias=False)
        self.judge = nn.Linear(shape.dim + rank, 1)
        nn.init.normal_(self.before.weight, std=0.02)
        nn.init.zeros_(self.bias.weight)

    def scores(self, states: Tensor, depth: int, before: Tensor) -> Tensor:
        bias: Tensor = self.bias(self.before(before))
        return super().scores(states, depth, before) + bias

    def kept_logit(self, states: Tensor, before: Tensor) -> Tensor:
        """The logit ``[...]`` of the chance that what is drafted from ``states [..., D]`` after the tokens ``before
        [...]`` is kept."""
        logit: Tensor = self.judge(torch.cat([states, self.before(before)], -1))
        return logit[..., 0]

    def confidence(self, states: Tensor, depth: int, before: Tensor) -> Tensor | None:
        return self.kept_logit(states, before).sigmoid()
