"""Mixed precision where it pays."""

from __future__ import annotations

import time
from functools import cache
from statistics import median

import torch

SIZE = 384
"""Of the square matrices that are multiplied to see what is faster."""


def mixed(wanted: bool | None, device: torch.device) -> torch.autocast:
    """A context that computes in bfloat16 if ``wanted``; None: where that is faster (:func:`bf16_pays`)."""
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16_pays(device) if wanted is None else wanted)


@cache
def bf16_pays(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster than in float32: on GPUs, and on processors that have instructions for
    them. Elsewhere they are made of conversions, ten times slower (measured, a few milliseconds, once)."""
    if device.type != "cpu":
        return True
    return _seconds(torch.bfloat16) < _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    a, b = (torch.ones(SIZE, SIZE, dtype=dtype) for _ in range(2))
    times = []
    for _ in range(6):
        began = time.perf_counter()
        torch.mm(a, b)
        times.append(time.perf_counter() - began)
    return median(times[1:])
