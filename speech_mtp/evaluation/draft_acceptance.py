"""How far a chain of a head's best guesses is right, from teacher-forced guesses alone: no decoding is needed.

A draft after ``h_t`` has the tokens ``x_{t+2}, x_{t+3}, ...``. Where each comes from is the rule of decoding,
:func:`speech_mtp.heads.base.source`: adjacent heads use ``h_t`` alone, leaps look back. As long as all earlier
guesses are right, a head that is fed with them is fed with the true tokens;
so the count is exact for greedy drafts of text that the trunk itself would have said.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from speech_mtp.heads.base import source

Guesses = Mapping[int, tuple[Tensor, Tensor]]
"""Per offset, ``right`` and ``known [B, T]`` bool: whether the best guess is the token, whether there is one."""


def count_accepted(guesses: Guesses) -> Tensor:
    """``[K, 3]`` int64 for the K tokens of a draft, to be added up over batches: how many positions have this token and
    all before it, at how many of them all before it are right, and at how many it is right too."""
    offsets = tuple(sorted(guesses))
    whole = right_so_far = torch.ones_like(guesses[offsets[0]][0])
    counts = []
    for i in range(2, offsets[-1] + 1):
        j, age = source(offsets, i)
        right, known = (_behind(x, age) for x in guesses[offsets[j]])
        whole, reached = whole & known, right_so_far & whole & known
        right_so_far = reached & right
        counts.append(torch.stack([whole.sum(), reached.sum(), right_so_far.sum()]))
    return torch.stack(counts)


RANKS = 10


def count_ranks(ranks: Tensor) -> Tensor:
    """``ranks [n]`` from 0 -> ``[RANKS + 1]`` int64: how many of each, and how many there are in all."""
    few = torch.bincount(ranks.clamp(max=RANKS), minlength=RANKS + 1)
    return torch.cat([few[:RANKS], few.sum()[None]])


def rank_accuracies(counts: Tensor) -> list[list[float]]:
    """Counts ``[K, RANKS + 1]`` of the K offsets of a head -> per offset, how often the token is its first, second, ...
    guess: what :func:`speech_mtp.decoding.tree.static_tree` is built of. A head that reads the tokens drafted before
    was given the true ones."""
    shares = counts[:, :RANKS] / counts[:, RANKS:].clamp(min=1)
    return [[round(share, 4) for share in row] for row in shares.tolist()]


def _behind(x: Tensor, n: int) -> Tensor:
    """``x [B, T]`` -> what stood n positions before, False before the beginning."""
    return F.pad(x[:, : x.shape[1] - n], (n, 0)) if n else x


def acceptance_rates(counts: Tensor) -> dict[str, float]:
    """Rates of the counts of :func:`count_accepted`.

    ``accept/i``: the share of positions where all tokens up to ``x_{t+i}`` are right; ``conditional/i``: the share
    where ``x_{t+i}`` is, of those where all before it are; ``tokens_per_forward``: one sure token and the expected
    number of right ones, ``1 + sum_k prod_{j<=k}`` of the conditional rates.
    """
    rates: dict[str, float] = {}
    chain = total = 1.0
    for i, (known, reached, right) in enumerate(counts.tolist(), start=2):
        conditional = right / max(1, reached)
        chain *= conditional
        total += chain
        rates |= {f"accept/{i}": right / max(1, known), f"conditional/{i}": conditional}
    return rates | {"tokens_per_forward": total}
