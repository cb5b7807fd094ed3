"""Logits -> tokens with counter-based randomness: noise is a function of (seed, position, channel, purpose).

A row therefore draws the same numbers alone, in a batch, streamed or offline, and a run can be continued
anywhere. No generator has a state.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speech_mtp.types import Sampling

_MIX = (0x9E3779B97F4A7C15 - (1 << 64), 0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))


def _scramble(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al. 2014) on int64, which wraps around."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _MIX[1]
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _MIX[2]
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def uniform(seed: Tensor, position: Tensor, channel: int, purpose: int, count: int) -> Tensor:
    """``seed, position [B]`` int64 -> ``[B, count]`` float32 in (0, 1)."""
    key = _scramble(seed * _MIX[0] + position)
    stream = torch.full((), channel * 64 + purpose + 1, device=seed.device) * _MIX[0]
    key = _scramble(key + stream)
    numbers = _scramble(key[:, None] + torch.arange(1, count + 1, device=seed.device) * _MIX[0])
    # The largest number plus a half rounds up to 2^24 in float32: at 1 the noise would be infinite and the token any.
    return ((((numbers >> 40) & 0xFFFFFF).float() + 0.5) / (1 << 24)).clamp(max=1 - 2**-24)


def row_seeds(seed: int, rows: int, device: torch.device) -> Tensor:
    """A seed for every row ``[rows]``, int64: ``seed`` itself for row 0, mixed with the row for the others."""
    row = torch.arange(rows, device=device)
    given = torch.full_like(row, seed)
    return torch.where(row == 0, given, _scramble(_scramble(given * _MIX[0]) + row * _MIX[0]))


def adjust(logits: Tensor, sampling: Sampling) -> Tensor:
    """The law of ``sampling``: ``logits [..., V]`` -> logits with -inf outside top-k and top-p, temperature applied.

    Greedy (temperature 0) keeps the logits: :func:`draw` then takes the largest.
    """
    if sampling.temperature == 0:
        return logits
    logits = logits.float() / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if sampling.top_p < 1:
        ranked, order = logits.softmax(-1).sort(descending=True)
        outside = ranked.cumsum(-1) - ranked > sampling.top_p
        logits = logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), float("-inf"))
    return logits


def draw(logits: Tensor, sampling: Sampling, seed: Tensor, position: Tensor, channel: int, purpose: int = 0) -> Tensor:
    """One token per row from ``softmax(logits [B, V])`` by the Gumbel-max trick (greedy: the largest)."""
    if sampling.temperature == 0:
        return best(logits)
    noise = uniform(seed, position, channel, purpose, logits.shape[-1])
    return (logits - (-noise.log()).log()).argmax(-1)


def best(logits: Tensor) -> Tensor:
    """The first of the largest along the last dimension. ``argmax`` in half precision takes four times as long."""
    return logits.max(-1).indices


def guard_repeats(logits: Tensor, recent: Tensor, sampling: Sampling) -> Tensor:
    """Lower the logit of a token that filled all of ``recent [B, W]`` (-1: nothing yet) by the repeat penalty."""
    if not sampling.repeat_window or recent.shape[1] < sampling.repeat_window:
        return logits
    last = recent[:, -sampling.repeat_window :]
    stuck = (last == last[:, :1]).all(1) & (last[:, 0] >= 0)
    penalty = torch.zeros_like(logits).scatter(1, last[:, :1].clamp(min=0), sampling.repeat_penalty)
    return logits - penalty * stuck[:, None]
