"""Who sees whom in a packed row, told as a rule; of it, what attention needs where it is computed.

A rule is a function of indices, so that it is stated once, and parts of a row in which nobody sees anybody cost
nothing: on a GPU it becomes a block mask of FlexAttention, on a CPU stripes of a dense mask. Packed documents are one
rule; objectives that insert positions have others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""``rule(row, head, query, key)``: whether position ``query`` of a row sees position ``key`` (bool); the arguments are
indices that broadcast."""
STRIPE = 128
"""Queries that look at the same range of keys."""
FEW = 128
"""Up to so many queries learn faster in float32 than in bfloat16 on a CPU: the gradient of 16 takes a tenth."""


def plain_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, chain: bool = False) -> Tensor:
    """Attention of ``[B, H, M, d]`` over ``[B, H', S, d]`` by torch. Of up to :data:`FEW` queries on a CPU it is in
    float32 where mixed precision wants bfloat16, in training and in what is measured beside it. ``mask`` and ``chain``
    as for :func:`speech_mtp.nn.kv_cache.attention`."""
    grouped = queries.shape[1] != keys.shape[1]
    mixed = queries.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    if not mixed or torch.get_autocast_dtype("cpu") is not torch.bfloat16 or queries.shape[2] > FEW:
        return F.scaled_dot_product_attention(queries, keys, values, mask, is_causal=chain, enable_gqa=grouped)
    mask = mask.float() if mask is not None and mask.is_floating_point() else mask
    q, k, v = (x.float() for x in (queries, keys, values))
    with torch.autocast("cpu", enabled=False):
        seen = F.scaled_dot_product_attention(q, k, v, mask, is_causal=chain, enable_gqa=grouped)
    return seen.to(torch.bfloat16)


@dataclass(frozen=True)
class Stripes:
    """A dense ``mask [B, 1, T, T]``, cut: queries ``at, at + STRIPE`` see no keys but those from ``first`` to ``end``::

    x . . . . .      stripe 0: keys 0 to 2
    x x . . . .
    . . x . . .      stripe 1: keys 2 to 4, the second document
    . . x x . .
    """

    mask: Tensor
    ranges: list[tuple[int, int]]

    @classmethod
    def of(cls, mask: Tensor) -> Stripes:
        seen = torch.stack([part.any(2).any(0)[0] for part in mask.split(STRIPE, 2)])
        at = torch.arange(mask.shape[-1])
        first = torch.where(seen, at, mask.shape[-1]).amin(1)
        end = torch.where(seen, at + 1, 0).amax(1)
        return cls(mask, list(zip(first.tolist(), end.tolist(), strict=True)))

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Attention of ``[B, H, T, d]`` over ``[B, H', T, d]``."""
        stripes = zip(queries.split(STRIPE, 2), self.mask.split(STRIPE, 2), self.ranges, strict=True)
        parts = [
            plain_attention(part, keys[:, :, a:b], values[:, :, a:b], mask[..., a:b]) for part, mask, (a, b) in stripes
        ]
        return torch.cat(parts, 2)


Mask = Tensor | BlockMask | Stripes
"""What attention is told: bool or additive ``[B, 1, T, S]``, or what :func:`mask_of` makes."""


def within_segments(segment: Tensor) -> Rule:
    """Each position sees itself and what stands before it in its segment; ``segment [B, T]``."""

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (segment[row, query] == segment[row, key]) & (key <= query)

    return sees


def mask_of(rule: Rule, rows: int, length: int, device: torch.device) -> BlockMask | Stripes:
    """The mask of ``rows`` rows of ``length`` positions, each of which must see one at least."""
    if device.type == "cuda":
        return create_block_mask(rule, rows, None, length, length, str(device))
    return Stripes.of(dense(rule, rows, length, device))


def dense(rule: Rule, rows: int, length: int, device: torch.device) -> Tensor:
    """``[B, 1, T, T]`` bool."""
    row, at = torch.arange(rows, device=device), torch.arange(length, device=device)
    seen = rule(row[:, None, None, None], torch.zeros_like(row[:1]), at[:, None], at)
    return seen.expand(rows, 1, length, length)


def block_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: BlockMask, grouped: bool) -> Tensor:
    """Attention under a block mask; compiled on a GPU, where that is what makes it fast."""
    found: Tensor = _flex(queries.device.type)(queries, keys, values, block_mask=mask, enable_gqa=grouped)
    return found


@cache
def _flex(device: str) -> Callable[..., Any]:
    return torch.compile(flex_attention) if device == "cuda" else flex_attention
