"""Meta's multi-token prediction (Gloeckle et al. 2024, arXiv:2404.19737, section 2): one transformer layer per offset.

The paper's trunk ends below the last layer, and every offset has a last layer of its own, the next token included: so
the heads read the states that enter the trunk's last layer, and their outputs go through the trunk's final norm and
unembedding. The layers attend to trunk states alone, never to drafts; a head needs the states of all positions, and
keeps their keys and values while decoding. The layers start as the identity.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speech_mtp.heads.base import HeadState, ParallelHead, TrunkShape, masked_past_of, newest_of
from speech_mtp.nn.kv_cache import KVCache
from speech_mtp.nn.transformer import LlamaBlock, causal
from speech_mtp.nn.visibility import Mask
from speech_mtp.types import LMOutput


@dataclass(kw_only=True)
class ParallelState(HeadState):
    """``cache`` has one layer per head, ``newest [B, num_heads, D]`` is what each made of the newest position."""

    cache: KVCache
    newest: Tensor


class Parallel(ParallelHead):
    """``num_heads`` layers of the trunk's sizes. ``taps`` default to the input of the trunk's last layer.

    The tap -1 can be read too; its states have passed the trunk's final norm once already.
    """

    def __init__(
        self,
        shape: TrunkShape,
        num_heads: int = 4,
        taps: tuple[int, ...] | None = None,
        feed: str = "last",
        draft_vocab: int | None = None,
    ) -> None:
        super().__init__(shape, tuple(range(2, 2 + num_heads)), taps or (shape.num_layers - 1,), feed, draft_vocab)
        self.blocks = nn.ModuleList(LlamaBlock(shape.block(), j) for j in range(num_heads))
        for name, weight in self.blocks.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(weight)

    def ahead(self, hidden: Tensor, j: int, at: tuple[Tensor, Mask] | None = None) -> Tensor:
        """Mixed trunk states of whole texts ``[B, T, D]`` -> states ``[B, T, D]``; ``at`` says where they stand and
        whom they see (None: all before them)."""
        out: Tensor = self.trunk.norm(self.blocks[j](hidden, *(at or causal(hidden))))
        return out

    def unroll_states(self, out: LMOutput, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        at = masked_past_of(out)
        for j, offset in enumerate(self.offsets):  # mixed anew for every offset: each may be back-propagated at once
            yield offset, self.ahead(self.mix(out.hidden), j, at)

    def open(self, rows: int, device: torch.device, dtype: torch.dtype) -> ParallelState:
        s, n = self.shape, self.num_depths
        cache = KVCache.empty(n, rows, s.num_kv_heads, 128, s.head_dim, device, dtype)
        newest = torch.zeros(rows, n, s.dim, device=device, dtype=dtype)
        return ParallelState(**vars(super().open(rows, device, dtype)), cache=cache, newest=newest)

    def read(self, state: HeadState, hidden: Tensor, x: Tensor, lengths: Tensor) -> None:
        assert isinstance(state, ParallelState)
        super().read(state, hidden, x, lengths)
        count = hidden.shape[1]
        if count:
            mixed = self.mix(hidden)
            index, mask = state.cache.behind(count)
            made = torch.stack([block(mixed, index, mask, state.cache) for block in self.blocks], 2)
            state.newest = newest_of(made, lengths, state.newest)
            state.cache.advance(lengths, count)

    def at_age(self, state: HeadState, j: int, age: int) -> Tensor:
        assert isinstance(state, ParallelState), type(state)
        assert age == 0, f"adjacent heads look from the newest state, not from {age} positions ago"
        out: Tensor = self.trunk.norm(state.newest[:, j])
        return out
