"""Logits -> tokens with counter-based randomness: noise is a function of (seed, position, channel, purpose).

A row therefore draws the same numbers alone, in a batch, streamed or offline, and a run can be continued
anywhere. No generator has a state. Every function takes the settings of each row (:class:`RowSampling`).
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import torch
from torch import Tensor

from speech_mtp import native
from speech_mtp.nn.blocks import is_native
from speech_mtp.types import RowSampling

TARGET, ACCEPT, DRAFT = range(3)
"""Purposes of noise: the trunk's own draw (guesses use it too), a test of acceptance, a draft drawn at random."""

CANDIDATES = 256
"""The likeliest tokens that top-k and top-p are first looked for among; of a small vocabulary one in eight."""

SHORTLIST = 64
"""Tokens that a sampled guess is looked for among: of a large vocabulary noise seldom lifts another one."""

SMALL = 2048
"""Vocabularies up to this size are looked at whole: codes of speech may be nearly as likely as each other."""

_MIX = (0x9E3779B97F4A7C15 - (1 << 64), 0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))


def _scramble(x: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele et al. 2014) on int64, which wraps around."""
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * _MIX[1]
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * _MIX[2]
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def uniform(seed: Tensor, position: Tensor, channel: int, purpose: int, at: Tensor) -> Tensor:
    """The numbers ``at [..., N]`` (or ``[N]``, the same for all) of each of ``seed, position [...]``: float32 in
    (0, 1)."""
    key = _scramble(seed * _MIX[0] + position)
    stream = torch.full((), channel * 64 + purpose + 1, device=seed.device) * _MIX[0]
    key = _scramble(key + stream)
    numbers = _scramble(key[..., None] + (at + 1) * _MIX[0])
    # The largest number plus a half rounds up to 2^24 in float32: at 1 the noise would be infinite and the token any.
    return ((((numbers >> 40) & 0xFFFFFF).float() + 0.5) / (1 << 24)).clamp(max=1 - 2**-24)


def gumbel(seed: Tensor, position: Tensor, channel: int, at: Tensor, purpose: int = TARGET) -> Tensor:
    """Gumbel noise of the tokens ``at``, shapes as for :func:`uniform`."""
    return -(-uniform(seed, position, channel, purpose, at).log()).log()


def row_seeds(seed: int, rows: int, device: torch.device) -> Tensor:
    """A seed for every row ``[rows]``, int64: ``seed`` itself for row 0, mixed with the row for the others."""
    row = torch.arange(rows, device=device)
    given = torch.full_like(row, seed)
    return torch.where(row == 0, given, _scramble(_scramble(given * _MIX[0]) + row * _MIX[0]))


def _rows(column: Tensor, like: Tensor) -> Tensor:
    """A column ``[R]`` shaped to go with ``like [R, ...]``."""
    return column.view(-1, *[1] * (like.ndim - 1))


def tempered(logits: Tensor, rows: RowSampling) -> Tensor:
    """``logits [R, ..., V]`` divided by each row's temperature, float32; those of greedy rows as they are."""
    if not rows.sampled:
        return logits
    t = torch.where(rows.temperature > 0, rows.temperature, 1.0)
    return logits.float() / _rows(t, logits)


def adjust(logits: Tensor, rows: RowSampling) -> Tensor:
    """The law of every row: ``logits [R, ..., V]`` -> with the temperature applied, and -inf outside top-k and top-p.

    Greedy rows keep their likeliest token at least. Tokens as likely as the last one inside are inside.
    """
    return _filtered(tempered(logits, rows), rows)


def sure(logits: Tensor, rows: RowSampling) -> Tensor:
    """``logits [R, ..., V]`` with -inf for all but the likeliest token of greedy rows: their law, as an adjusted one is
    that of the others."""
    only = torch.full_like(logits, float("-inf")).scatter(-1, best(logits)[..., None], 0.0)
    return torch.where(_rows(rows.temperature > 0, logits), logits, only)


def _filtered(logits: Tensor, rows: RowSampling) -> Tensor:
    if not rows.filtered:
        return logits
    return logits.masked_fill(logits < _least(logits, logits.sort(descending=True).values, rows), float("-inf"))


def _least(logits: Tensor, ranked: Tensor, rows: RowSampling) -> Tensor:
    """The smallest logit ``[R, ..., 1]`` inside top-k and top-p; ``ranked [R, ..., N]`` are the largest in order."""
    inside = torch.ones_like(ranked, dtype=torch.bool)
    total = logits.logsumexp(-1, keepdim=True)
    if rows.most_top_k:  # top-p is a share of what top-k leaves
        limited = _rows(rows.top_k > 0, ranked)
        inside = (torch.arange(ranked.shape[-1], device=ranked.device) < _rows(rows.top_k, ranked)) | ~limited
        left = ranked.masked_fill(~inside, float("-inf"))
        total = torch.where(limited, left.logsumexp(-1, keepdim=True), total)
    share = (ranked - total).exp()
    p = torch.where(rows.top_p < 1, rows.top_p, 2.0)
    inside = inside & (share.cumsum(-1) - share <= _rows(p, ranked))
    return ranked.masked_fill(~inside, float("inf")).amin(-1, keepdim=True)


def choose(logits: Tensor, rows: RowSampling, position: Tensor, channel: int) -> Tensor:
    """The trunk's own draw: one token per row from ``logits [R, V]`` at ``position [R]``, by the Gumbel-max trick.

    Where top-k and top-p leave few tokens, only those are looked at; the token is the same.
    """
    if not rows.sampled:
        return best(logits)
    if logits.device.type == "cpu" and logits.shape[-1] <= SMALL and is_native():
        return _chosen(logits, rows, position, channel)
    logits = tempered(logits, rows)
    few = _few(logits, rows) if rows.filtered else None
    if few is not None:
        values, ids = few
        return ids.gather(1, best(perturbed(values, rows, position, channel, ids))[:, None])[:, 0]
    every = torch.arange(logits.shape[-1], device=logits.device)
    return best(perturbed(_filtered(logits, rows), rows, position, channel, every))


def _chosen(logits: Tensor, rows: RowSampling, position: Tensor, channel: int) -> Tensor:
    """The same by the compiled kernels: speech draws ten times a step, and torch takes forty calls for a draw."""
    library = native.load()
    assert library is not None
    logits = logits.float().contiguous()
    tokens = torch.empty(len(logits), dtype=torch.long)
    held = (
        *(rows.temperature.float().contiguous(), rows.top_k.long().contiguous(), rows.top_p.float().contiguous()),
        *(rows.seed.long().contiguous(), position.long().contiguous()),
    )
    numbers = [ctypes.c_int64(n) for n in (*logits.shape, channel, TARGET)]
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (logits, *held, tokens)]
    if library.smtp_choose(pointers[0], *numbers[:2], *pointers[1:6], *numbers[2:], pointers[6]):
        raise MemoryError(f"There is no memory for {logits.shape[-1]} tokens.")
    return tokens


def choose_among(logits: Tensor, rows: RowSampling, position: Tensor, channel: int, count: int = CANDIDATES) -> Tensor:
    """:func:`choose` among the ``count`` likeliest tokens: the same token, unless top-k and top-p leave more of them.
    Nothing is sorted or drawn for the whole vocabulary, and nothing copied to the host."""
    if not rows.sampled:
        return best(logits)
    logits = tempered(logits, rows)
    values, ids = logits.topk(min(count, logits.shape[-1]))
    if rows.filtered:
        values = values.masked_fill(values < _least(logits, values, rows), float("-inf"))
    return ids.gather(1, best(perturbed(values, rows, position, channel, ids))[:, None])[:, 0]


def _few(logits: Tensor, rows: RowSampling) -> tuple[Tensor, Tensor] | None:
    """The logits ``[R, N]`` inside top-k and top-p (-inf: outside) and their tokens, if N is small for every row. On a
    CPU only: elsewhere the answer would cost a copy."""
    count = min(CANDIDATES, logits.shape[-1] // 8)
    if logits.device.type != "cpu" or count < 64 or rows.most_top_k > count:
        return None
    ranked = logits.topk(count)
    least = _least(logits, ranked.values, rows)
    greedy = (rows.temperature == 0)[:, None]
    if not bool(((ranked.values[:, -1:] < least) | greedy).all()):
        return None
    return ranked.values.masked_fill(ranked.values < least, float("-inf")), ranked.indices


def perturbed(logits: Tensor, rows: RowSampling, position: Tensor, channel: int, ids: Tensor) -> Tensor:
    """``logits [R, ..., N]`` of the tokens ``ids`` plus the noise of ``position [R, ...]``; greedy rows without."""
    if not rows.sampled:
        return logits
    seed = rows.seed.view(-1, *[1] * (position.ndim - 1))
    noise = gumbel(seed, position, channel, ids)
    return logits + noise * _rows((rows.temperature > 0).float(), noise)


def likeliest(
    logits: Tensor,
    rows: RowSampling,
    position: Tensor,
    channel: int,
    width: int,
    to_target: Callable[[Tensor], Tensor] = lambda ids: ids,
) -> tuple[Tensor, Tensor]:
    """Guesses of what the trunk will draw at ``position [R, ...]``: of a drafter's ``logits [R, ..., V]`` the ``width``
    tokens with the largest sums of logit and that position's noise, ``[R, ..., width]``, and the logarithms of their
    chances. ``to_target`` gives the trunk's ids of the drafter's.

    Sampled, only the :data:`SHORTLIST` likeliest of a vocabulary that is not :data:`SMALL` are looked at, and top-k and
    top-p are taken among them alone: a guess need not follow the law.
    """
    if not rows.sampled:
        best_few = logits.float().log_softmax(-1).topk(min(width, logits.shape[-1]), -1)
        return to_target(best_few.indices), best_few.values
    size = logits.shape[-1]
    few = tempered(logits, rows).topk(size if size <= SMALL else max(width, SHORTLIST), -1)
    values, ids = few.values, to_target(few.indices)
    if rows.filtered:
        values = values.masked_fill(values < _least(values, values, rows), float("-inf"))
    best_few = perturbed(values, rows, position, channel, ids).log_softmax(-1).topk(min(width, values.shape[-1]), -1)
    return ids.gather(-1, best_few.indices), best_few.values


def best(logits: Tensor) -> Tensor:
    """The first of the largest along the last dimension. ``argmax`` in half precision takes four times as long."""
    return logits.max(-1).indices


def guard_repeats(logits: Tensor, recent: Tensor, rows: RowSampling) -> Tensor:
    """Lower the logit of a token that filled the row's whole window of ``recent [R, W]`` (-1: nothing yet) by its
    repeat penalty."""
    if not min(rows.most_repeat_window, recent.shape[1]):
        return logits
    stuck, lowered = repeats(recent, rows)
    return logits - torch.zeros_like(logits).scatter(1, stuck[:, None], lowered[:, None].to(logits.dtype))


def repeats(recent: Tensor, rows: RowSampling) -> tuple[Tensor, Tensor]:
    """The newest token of each row ``[R]`` in ``recent [R, W]`` (-1: nothing yet; here 0), and its repeat penalty
    ``[R]`` where it filled the row's whole window, else 0."""
    width = min(rows.most_repeat_window, recent.shape[1])
    if not width:
        none = torch.zeros(len(recent), device=recent.device)
        return none.long(), none
    last = recent[:, -width:]
    age = torch.arange(width, 0, -1, device=recent.device)
    newest = last[:, -1:]
    same = (last == newest) | (age > rows.repeat_window[:, None])
    stuck = same.all(1) & (newest[:, 0] >= 0) & (rows.repeat_window > 0) & (rows.repeat_window <= recent.shape[1])
    return newest[:, 0].clamp(min=0), rows.repeat_penalty * stuck
