"""Hydra (Ankner et al. 2024, arXiv:2402.05109): heads that know the tokens drafted before theirs.

Head i (from 0) predicts ``x_{t+2+i}`` from ``h_t`` and the input vectors of the i + 1 positions after t. Its first
block is ``S z + SiLU(W z + b)`` on their concatenation z, then come ``num_layers - 1`` blocks of Medusa.
``prefix_layer`` puts one transformer layer over the trunk's states in front of all heads (Hydra++: also
``num_heads=4, num_layers=4``).

Unlike the released code every block has its own weights. S starts by passing ``h_t`` on, everything else that is added
starts at zero, so that an untrained head is exactly the trunk's next-token layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp.heads.base import HeadState, MTPHead, PrivateUnembedding, TrunkShape, masked_past_of, newest_of, shifted
from speech_mtp.nn.kv_cache import KVCache
from speech_mtp.nn.residual import ResBlock
from speech_mtp.nn.transformer import LlamaBlock
from speech_mtp.types import LMOutput


@dataclass(kw_only=True)
class HydraState(HeadState):
    """``base [B, D]`` is what the heads read of the newest position, ``cache`` that of the prefix layer.

    ``paths [B, n, num_heads - 1, D]`` are the vectors on the way to every drafted node, its own at last; of a node at
    depth d the first d count.
    """

    base: Tensor
    paths: Tensor
    cache: KVCache | None


class FirstBlock(nn.Module):
    """``S z + SiLU(W z + b)``: ``[..., num_parts * D]`` -> ``[..., D]``, at the start the first of the parts."""

    def __init__(self, dim: int, num_parts: int) -> None:
        super().__init__()
        self.skip = nn.Linear(num_parts * dim, dim, bias=False)
        self.linear = nn.Linear(num_parts * dim, dim)
        for weight in (self.skip.weight, self.linear.weight, self.linear.bias):
            nn.init.zeros_(weight)
        nn.init.eye_(self.skip.weight.detach()[:, :dim])

    def forward(self, z: Tensor) -> Tensor:
        return self.skip(z) + F.silu(self.linear(z))


class Hydra(MTPHead):
    """``num_heads`` heads of ``num_layers`` blocks. ``private`` gives each an unembedding, at first the trunk's."""

    identity_at_start = True

    def __init__(
        self,
        shape: TrunkShape,
        num_heads: int = 4,
        num_layers: int = 1,
        prefix_layer: bool = False,
        private: bool = False,
        taps: tuple[int, ...] = (-1,),
        feed: str = "last",
        draft_vocab: int | None = None,
    ) -> None:
        super().__init__(shape, tuple(range(2, 2 + num_heads)), taps, feed, draft_vocab)
        self.blocks = nn.ModuleList(
            nn.Sequential(FirstBlock(shape.dim, i + 2), *(ResBlock(shape.dim) for _ in range(num_layers - 1)))
            for i in range(num_heads)
        )
        self.prefix = LlamaBlock(shape.block()) if prefix_layer else None
        if self.prefix is not None:
            nn.init.zeros_(self.prefix.self_attn.o_proj.weight)
            nn.init.zeros_(self.prefix.mlp.down_proj.weight)
        if private:
            self.private = PrivateUnembedding(num_heads, shape.dim, self.num_tokens)

    def ahead(self, base: Tensor, *after: Tensor) -> Tensor:
        """``base [..., D]`` and the n vectors ``[..., D]`` after it -> the state ``[..., D]`` of the next position."""
        out: Tensor = self.blocks[len(after) - 1](torch.cat([base, *after], -1))
        return out

    def unroll_states(self, out: LMOutput, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        for offset in self.offsets:
            base = self.mix(out.hidden)  # anew for every offset: each may be back-propagated at once
            if self.prefix is not None:
                base = self.prefix(base, *masked_past_of(out))
            yield offset, self.where_wanted(out, self.ahead, base, *(shifted(x, n) for n in range(1, offset)))

    def open(self, rows: int, device: torch.device, dtype: torch.dtype) -> HydraState:
        s, cache = self.shape, None
        if self.prefix is not None:
            cache = KVCache.empty(1, rows, s.num_kv_heads, 128, s.head_dim, device, dtype)
        base = torch.zeros(rows, s.dim, device=device, dtype=dtype)
        paths = torch.zeros(rows, 0, self.num_depths - 1, s.dim, device=device, dtype=dtype)
        return HydraState(**vars(super().open(rows, device, dtype)), base=base, paths=paths, cache=cache)

    def read(self, state: HeadState, hidden: Tensor, x: Tensor, lengths: Tensor) -> None:
        assert isinstance(state, HydraState)
        super().read(state, hidden, x, lengths)
        state.paths = state.paths[:, :0]
        if hidden.shape[1]:
            base = self.mix(hidden)
            if self.prefix is not None and state.cache is not None:
                base = self.prefix(base, *state.cache.behind(base.shape[1]), state.cache)
                state.cache.advance(lengths, base.shape[1])
            state.base = newest_of(base, lengths, state.base)

    def root(self, state: HeadState) -> Tensor:
        assert isinstance(state, HydraState)
        return self.ahead(state.base, state.last)

    def expand(self, state: HeadState, x: Tensor, parents: Tensor) -> Tensor:
        assert isinstance(state, HydraState)
        depth = self.next_depth(state)
        known = F.pad(state.paths, (0, 0, 0, 0, 1, 0))  # node 0 has nothing on its way
        paths = known.gather(1, (parents + 1)[..., None, None].expand(-1, -1, *known.shape[2:]))
        paths[:, :, depth - 1] = x
        state.paths = torch.cat([state.paths, paths], 1)
        base, last = (vector[:, None].expand_as(x) for vector in (state.base, state.last))
        return self.ahead(base, last, *paths[:, :, :depth].unbind(2))
