"""Figures of a corpus with the interval that holds 95 % of the bootstrap samples of its utterances."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

SAMPLES = 1000


def estimate(sums: Tensor, figure: Callable[[Tensor], Tensor], seed: int = 0) -> dict[str, float | list[float]]:
    """``sums [U, M]`` of the utterances, and a ``figure`` of their total (``[..., M] -> [...]``) -> value, interval."""
    sums = sums.double()
    drawn = torch.randint(len(sums), (SAMPLES, len(sums)), generator=torch.Generator().manual_seed(seed))
    totals = torch.stack([sums[row].sum(0) for row in drawn])
    spread = figure(totals).nan_to_num(0.0).quantile(torch.tensor([0.025, 0.975], dtype=torch.double))
    return {"value": float(figure(sums.sum(0))), "interval": spread.tolist()}


def ratio(totals: Tensor) -> Tensor:
    """Of (count, of how many)."""
    return totals[..., 0] / totals[..., 1]


def correlation(totals: Tensor) -> Tensor:
    """Pearson's, of the sums of (1, x, y, xx, yy, xy)."""
    n, x, y, xx, yy, xy = totals.unbind(-1)
    return (n * xy - x * y) / ((n * xx - x * x) * (n * yy - y * y)).clamp_min(1e-12).sqrt()


def correlation_sums(x: Tensor, y: Tensor) -> Tensor:
    """``x, y [N]`` -> the sums ``[6]`` that :func:`correlation` needs."""
    x, y = x.double(), y.double()
    return torch.stack([torch.ones_like(x), x, y, x * x, y * y, x * y]).sum(1)
