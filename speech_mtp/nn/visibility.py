"""Who sees whom in a packed row, told as a rule; of it, a dense mask, or on a GPU the block mask of FlexAttention.

A rule is a function of indices, so that it can be stated once, whatever computes attention, and blocks of a row in
which nobody sees anybody cost a GPU nothing. Packed documents are one rule; objectives that insert positions have
others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

Mask = Tensor | BlockMask
"""What attention is told: bool or additive ``[B, 1, T, S]``, or blocks of positions with a rule inside."""
Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""``rule(row, head, query, key)``: whether position ``query`` of a row sees position ``key`` (bool); the arguments are
indices that broadcast."""


def within_segments(segment: Tensor) -> Rule:
    """Each position sees itself and what stands before it in its segment; ``segment [B, T]``."""

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (segment[row, query] == segment[row, key]) & (key <= query)

    return sees


def mask_of(rule: Rule, rows: int, length: int, device: torch.device) -> Mask:
    """What :func:`speech_mtp.nn.kv_cache.attention` takes as the mask of ``rows`` rows of ``length`` positions: bool
    ``[B, 1, T, T]``, on a GPU a ``BlockMask``."""
    if device.type == "cuda":
        return create_block_mask(rule, rows, None, length, length, str(device))
    row, at = torch.arange(rows, device=device), torch.arange(length, device=device)
    return rule(row[:, None, None, None], torch.zeros_like(row[:1]), at[:, None], at)


def block_attention(queries: Tensor, keys: Tensor, values: Tensor, mask: BlockMask, grouped: bool) -> Tensor:
    """Attention under a ``BlockMask``; compiled on a GPU, where that is what makes it fast."""
    found: Tensor = _flex(queries.device.type)(queries, keys, values, block_mask=mask, enable_gqa=grouped)
    return found


@cache
def _flex(device: str) -> Callable[..., Any]:
    return torch.compile(flex_attention) if device == "cuda" else flex_attention
