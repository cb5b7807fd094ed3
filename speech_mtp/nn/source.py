"""Excitation of a source-filter decoder: a band-limited pulse train and fixed noise, both streamable."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def pulse_train(f0_hz: Tensor, phase: Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Band-limited pulses of unit power: all harmonics below the Nyquist frequency at equal amplitude.

    ``f0_hz [B, S]`` per sample (> 0), ``phase [B]`` cycles so far (float64) -> ``wave [B, S]`` and the phase
    after the last sample of every step, ``[B, S]`` float64, so that a caller may stop a row anywhere.
    Closed form of the sum of cosines (Dirichlet kernel):
    sum_{h=1..H} cos(h w) = sin((H + 1/2) w) / (2 sin(w / 2)) - 1/2.
    """
    cycles = (phase[:, None] + (f0_hz.double() / sample_rate).cumsum(-1)).remainder(1.0)
    w = (2 * math.pi * cycles).float()
    harmonics = (0.5 * sample_rate / f0_hz.float()).floor() - 1
    denominator = 2 * torch.sin(w / 2)
    near = denominator.abs() < 2e-3
    safe = torch.where(near, torch.ones_like(denominator), denominator)
    kernel = torch.where(near, harmonics + 0.5, torch.sin((harmonics + 0.5) * w) / safe) - 0.5
    return kernel * (2.0 / harmonics).sqrt(), cycles


def fixed_noise(length: int = 131_071, seed: int = 0) -> Tensor:
    """``[length]`` standard normal samples, the same on every machine; indexed modulo ``length``."""
    return torch.randn(length, generator=torch.Generator().manual_seed(seed))
