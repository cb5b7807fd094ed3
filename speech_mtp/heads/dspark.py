"""DSpark (arXiv:2607.05147): DFlash's one pass, and a bias that makes every draft depend on the one before it.

Slot k predicts the token after its own position, so a block has as many slots as drafts. Its scores gain
``W2 W1[previous token]``, a bigram model of low rank; and a confidence head estimates from the slot's state and
``W1[previous token]`` how likely the next draft is kept: one minus half the L1 distance of the two laws.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from speech_mtp.heads.base import HeadState, TrunkShape
from speech_mtp.heads.dflash import BlockState, DFlash
from speech_mtp.types import LMOutput


class DSpark(DFlash):
    """As :class:`~speech_mtp.heads.dflash.DFlash`, with a bigram bias of rank ``rank``, zero at the start."""

    from_anchor = True

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

    def unroll_at(self, out: LMOutput, tokens: Tensor, anchors: Tensor) -> Iterator[tuple[int, Tensor]]:
        for step in self.unroll_judged(out, tokens, anchors):
            yield step[:2]
            del step  # or its logits would live while the next are computed

    def unroll_judged(self, out: LMOutput, tokens: Tensor, anchors: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Offset, logits ``[B, A, num_tokens]`` and the logit ``[B, A]`` of the draft's being kept, as
        :meth:`unroll_at`, with the true tokens as previous ones."""
        slots = self.train_slots(out, tokens, anchors)
        for j, offset in enumerate(self.offsets):
            previous = tokens.gather(1, (anchors + offset - 1).clamp(max=tokens.shape[1] - 1))
            bias, chance = self.given(slots[:, :, j], previous)
            yield offset, self.unembed(slots[:, :, j]) + bias, chance

    def given(self, slots: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """Slots ``[..., D]`` after the tokens ``previous [...]`` -> bias ``[..., num_tokens]``, confidence's logit."""
        gram = self.before(previous)
        return self.bias(gram), self.judge(torch.cat([slots, gram], -1))[..., 0]

    def after(self, state: BlockState, tokens: Tensor) -> Tensor:
        assert state.slots is not None, "root() comes before expand()"
        slots = state.slots[:, state.depth, None].expand(-1, tokens.shape[1], -1)
        bias, chance = self.given(slots, tokens)
        state.chance = chance.sigmoid()
        return super().after(state, tokens) + bias

    def confidence(self, state: HeadState) -> Tensor | None:
        assert isinstance(state, BlockState)
        return state.chance
