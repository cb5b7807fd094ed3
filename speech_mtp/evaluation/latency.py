"""Speed figures: percentiles of delays and the real-time factor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Delays:
    """Percentiles of measured delays, in the unit they were given in."""

    p50: float
    p95: float
    worst: float


def delays(measured: Sequence[float]) -> Delays:
    """Median, 95th percentile (linear between ranks) and maximum. Raises ``ValueError`` for no measurement."""
    if not measured:
        raise ValueError("no delay was measured, so there are no percentiles.")
    values = torch.tensor(measured, dtype=torch.float64)
    p50, p95 = torch.quantile(values, torch.tensor([0.5, 0.95], dtype=torch.float64)).tolist()
    return Delays(p50=p50, p95=p95, worst=float(values.max()))


def real_time_factor(compute_s: float, audio_s: float) -> float:
    """Seconds of computing per second of audio; below 1 is faster than speech."""
    if audio_s <= 0:
        raise ValueError(f"{audio_s} s of audio were made; the real-time factor needs some.")
    return compute_s / audio_s
