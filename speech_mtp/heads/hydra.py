"""Hydra (Ankner et al. 2024, arXiv:2402.05109): heads that know the tokens drafted before theirs.

Head i (from 0) predicts ``x_{t+2+i}`` from ``h_t`` and the embeddings of the i + 1 tokens after t. Its first block is
``S z + SiLU(W z + b)`` on their concatenation z, then come ``num_layers - 1`` blocks of Medusa. ``prefix_layer`` puts
one transformer layer over the trunk's states in front of all heads (Hydra++: also ``num_heads=4, num_layers=4``).

Unlike the released code every block has its own weights. S starts by passing ``h_t`` on, everything else that is added
starts at zero, so that an untrained head is exactly the trunk's next-token layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp.heads.base import HeadState, MTPHead, PrivateUnembedding, TrunkShape
from speech_mtp.nn.kv_cache import KVCache
from speech_mtp.nn.residual import ResBlock
from speech_mtp.nn.transformer import LlamaBlock, causal
from speech_mtp.types import LMOutput


@dataclass(kw_only=True)
class HydraState(HeadState):
    """``base [B, D]`` is what the heads read of the newest position, ``cache`` that of the prefix layer.

    ``paths [B, n, num_heads]`` are the tokens from ``last`` on that lead to node 0 and to every drafted node; of a node
    at depth d the first d + 1 count.
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

    def score(self, base: Tensor, after: Tensor) -> Tensor:
        """``base [..., D]`` and the ``n`` tokens ``after [..., n]`` it -> scores of the next ``[..., num_tokens]``."""
        i = after.shape[-1] - 1
        x = self.blocks[i](torch.cat([base, self.trunk.embed(after).flatten(-2)], -1))
        return self.output(x, i)

    def unroll(self, out: LMOutput, tokens: Tensor) -> Iterator[tuple[int, Tensor]]:
        for offset in self.offsets:
            base = self.mix(out.hidden)  # anew for every offset: each may be back-propagated at once
            if self.prefix is not None:
                base = self.prefix(base, *causal(base))
            after = torch.stack([tokens.roll(-ahead, 1) for ahead in range(1, offset)], -1)
            yield offset, self.where_wanted(out, self.score, base, after)

    def open(self, rows: int, device: torch.device, dtype: torch.dtype) -> HydraState:
        s, cache = self.shape, None
        if self.prefix is not None:
            cache = KVCache.empty(1, rows, s.num_kv_heads, 128, s.head_dim, device, dtype)
        base = torch.zeros(rows, s.dim, device=device, dtype=dtype)
        paths = torch.zeros(rows, 1, self.num_depths, dtype=torch.long, device=device)
        return HydraState(**vars(super().open(rows, device, dtype)), base=base, paths=paths, cache=cache)

    def read(self, state: HeadState, hidden: Tensor, tokens: Tensor, following: Tensor, lengths: Tensor) -> None:
        assert isinstance(state, HydraState)
        super().read(state, hidden, tokens, following, lengths)
        state.paths = F.pad(state.last[:, None, None], (0, self.num_depths - 1))
        if tokens.shape[1]:
            x = self.mix(hidden)
            if self.prefix is not None and state.cache is not None:
                x = self.prefix(x, *state.cache.behind(x.shape[1]), state.cache)
                state.cache.advance(lengths, x.shape[1])
            end = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, x.shape[-1])
            state.base = torch.where((lengths > 0)[:, None], x.gather(1, end)[:, 0], state.base)

    def root(self, state: HeadState) -> Tensor:
        assert isinstance(state, HydraState)
        return self.score(state.base, state.last[:, None])

    def expand(self, state: HeadState, tokens: Tensor, parents: Tensor) -> Tensor:
        assert isinstance(state, HydraState)
        state.depth += 1
        if state.depth >= self.num_depths:
            raise ValueError(f"This head drafts {self.num_depths} tokens, not more.")
        paths = state.paths.gather(1, (parents + 1)[..., None].expand(-1, -1, self.num_depths))
        paths[..., state.depth] = tokens
        state.paths = torch.cat([state.paths, paths], 1)
        base = state.base[:, None].expand(-1, tokens.shape[1], -1)
        return self.score(base, paths[..., : state.depth + 1])
