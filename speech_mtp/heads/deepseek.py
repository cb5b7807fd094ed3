"""DeepSeek-V3's modules (arXiv:2412.19437, section 2.2): a chain of blocks, each one token further ahead.

With ``h^0_i`` the trunk's state, module k = 1..D makes ``h^k_i`` of ``h^{k-1}_i`` and the embedding of ``x_{i+k}``,
attending to itself at positions 0..i, and ``h^k_i`` scores ``x_{i+k+1}``. Embedding and output layer are the trunk's.
As in the released weights, the final norm stands at the end of each module; its output is both scored and handed on.

The entry of module k at position i needs ``x_{i+k}``, so the deeper a module, the later its entries come. Here an entry
has the number of the *pair that completes it*: pair s brings ``x_{s+1}``, and with it module k gets its entry for
position ``s + 1 - k``, made from that token and from module k-1's output at pair ``s - 1``. Committed pairs therefore
extend all modules by one entry each, so does a drafted node (whose parent is "pair s - 1") for those modules that have
a state to start from, and both are the teacher-forced numbers exactly. Module k has no entry at the first k - 1 pairs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from speech_mtp.heads._sequential import MTPModule, Place, SequentialHead, SequentialState
from speech_mtp.heads.base import TrunkShape, masked_past_of, shifted
from speech_mtp.types import LMOutput


class DeepSeek(SequentialHead):
    """``depth`` modules (DeepSeek-V3 has one), each with its own weights and cache.

    ``order`` is that of the projection's input: ``embedding_first`` in the released weights, ``hidden_first`` in MiMo's
    and in the formula that the paper prints. The module of depth k + 1 is ``layers[k]``.
    """

    def __init__(
        self,
        shape: TrunkShape,
        depth: int = 3,
        order: str = "embedding_first",
        taps: tuple[int, ...] = (-1,),
        feed: str = "last",
        draft_vocab: int | None = None,
    ) -> None:
        super().__init__(shape, depth, depth, taps, feed, draft_vocab)
        self.layers = nn.ModuleList(MTPModule(shape, order, k) for k in range(depth))

    def walk(self, out: LMOutput, x: Tensor) -> Iterator[Tensor]:
        hidden = self.mix(out.hidden)
        index, mask = masked_past_of(out)
        for k, module in enumerate(self.layers):
            hidden = module(hidden, shifted(x, k + 1), index, mask)
            yield hidden

    def enter(self, state: SequentialState, hidden: Tensor, x: Tensor, place: Place) -> Tensor:
        outputs: list[Tensor] = []
        for k, (module, mask) in enumerate(zip(self.layers, self._masks(state, place), strict=True)):
            if k:
                hidden = torch.cat([state.newest[:, k - 1 : k], outputs[-1][:, :-1]], 1)
            outputs.append(module(hidden, x, place.at, mask, place.cache))
        return torch.stack(outputs, 2)

    def extend(self, state: SequentialState, above: Tensor, x: Tensor, place: Place) -> Tensor:
        masks, y = self._masks(state, place), torch.zeros_like(above)
        for k in range(state.depth, self.num_modules):
            y[:, :, k] = self.layers[k](above[:, :, k - 1], x, place.at, masks[k], place.cache)
        return y

    def _masks(self, state: SequentialState, place: Place) -> list[Tensor]:
        """``place.mask`` for every module, without the pairs that come before its first entry.

        Two committed pairs, behind them the drafted nodes a and b, both children of node 0, and c, a child of a::

            slot              0  1  a  b  c
            number of pair    0  1  2  2  3      a node's is one more than its parent's
            module 0          x  x  x  x  x
            module 1          .  x  x  x  x      x: has an entry
            module 2          .  .  x  x  x

        Queries at pairs without an entry mean nothing and see each other, because a softmax needs something to see.
        """
        lengths, level = state.cache.lengths[:, None], state.ancestors.sum(-1)
        slots = torch.arange(place.mask.shape[-1], device=lengths.device)
        drafted = lengths + slots[: level.shape[1]]
        pair = slots.expand(len(lengths), -1).scatter(1, drafted, lengths + level - 1)
        masks = []
        for k in range(self.num_modules):
            entered, meaningless = pair >= k, place.at < k
            masks.append(place.mask & (entered[:, None] | meaningless[..., None])[:, None])
        return masks
