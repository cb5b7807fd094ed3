"""Speech as another voice, line or room would give it, at the same timing: batch operations on spectra and waves.

Spectra are magnitudes ``[B, K, T]`` of ``n_fft = 2 (K - 1)`` samples. Nothing here resamples time, so frame t of the
result is frame t of what it was made from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR = 1e-5
_FINE_ABOVE_S = 0.0022
"""Quefrency that parts the spectral envelope from the harmonics: voices up to 450 Hz."""
_DEEPEST = -3.0
"""The log level between harmonics; a pulse train has nothing there, a voice its breath."""


def change_voice(
    magnitude: Tensor, pitch: Tensor, formants: Tensor, sample_rate: int, harmonics: Harmonics | None = None
) -> Tensor:
    """Multiply the pitch of ``magnitude [B, K, T]`` by ``pitch [B]`` and its formants by ``formants [B]``.

    The real cepstrum parts the log spectrum into an envelope (low quefrencies) and a fine structure; the frequency axis
    of each is stretched by its own factor (homomorphic vocoding, Oppenheim 1969). Where ``harmonics`` are given they
    take the place of the fine structure: their lines are as wide as those of a voice of that pitch.
    """
    envelope, fine = parted(magnitude, sample_rate)
    fine = stretch(fine, pitch)
    if harmonics is not None:
        lines = parted(harmonics.magnitude, sample_rate)[1].clamp(min=_DEEPEST)
        fine = fine + harmonics.weight * (lines - fine)
    return (stretch(envelope, formants) + fine).transpose(1, 2).exp()


@dataclass(frozen=True)
class Harmonics:
    """The spectrum ``magnitude [B, K, T]`` of a pulse train, and its ``weight [B, T, K]`` from 0 to 1."""

    magnitude: Tensor
    weight: Tensor


def parted(magnitude: Tensor, sample_rate: int) -> tuple[Tensor, Tensor]:
    """The log of ``magnitude [B, K, T]`` as the sum of a spectral envelope and a fine structure, ``[B, T, K]`` both."""
    log = magnitude.clamp(min=FLOOR).log().transpose(1, 2)
    n_fft = 2 * (log.shape[-1] - 1)
    cepstrum = torch.fft.irfft(log, n_fft)
    quefrency = torch.arange(n_fft, device=log.device)
    quefrency = torch.minimum(quefrency, n_fft - quefrency) / sample_rate
    keep = ((_FINE_ABOVE_S - quefrency) / (0.2 * _FINE_ABOVE_S) + 0.5).clamp(0, 1)
    envelope = torch.fft.rfft(cepstrum * keep, n_fft).real
    return envelope, log - envelope


def stretch(track: Tensor, factors: Tensor) -> Tensor:
    """Stretch the last axis of ``track [B, T, K]`` by ``factors [B]``; past its end it is mirrored."""
    last = track.shape[-1] - 1
    at = torch.arange(last + 1, device=track.device) / factors[:, None]
    at = (last - (last - at).abs()).clamp(0, last - 1e-3)
    low = at.floor().long()
    part = (at - low)[:, None]
    index = low[:, None].expand(-1, track.shape[1], -1)
    return track.gather(2, index) * (1 - part) + track.gather(2, index + 1) * part


def random_gain(rows: int, bins: int, decibels: Tensor, knots: int = 8) -> Tensor:
    """Smooth random gains over frequency, ``[rows, bins]``: linear between ``knots`` points of deviation
    ``decibels [rows]``, denser at low frequencies."""
    at = torch.linspace(0, 1, bins, device=decibels.device).sqrt() * (knots - 1)
    low = at.floor().clamp(max=knots - 2).long()
    points = torch.randn(rows, knots, device=decibels.device) * decibels[:, None]
    curve = points[:, low] * (1 - (at - low)) + points[:, low + 1] * (at - low)
    return 10 ** (curve / 20)


def coloured_noise(wave: Tensor, lengths: Tensor, snr_db: Tensor) -> Tensor:
    """Noise for ``wave [B, S]``, of which ``lengths [B]`` samples count, ``snr_db [B]`` below it: ``[B, S]``.

    Its spectrum falls by a random power of frequency between that of white and of brown noise.
    """
    rows, samples = wave.shape
    slope = (1.25 * torch.rand(rows, 1, device=wave.device) - 0.25).clamp(min=0)  # a fifth of them is white
    shape = torch.arange(samples // 2 + 1, device=wave.device).clamp(min=50.0 * samples / 24_000) ** -slope
    noise = torch.fft.irfft(torch.fft.rfft(torch.randn_like(wave)) * shape, samples)
    level = (wave.square().sum(1) / lengths).sqrt() * 10 ** (-snr_db / 20)
    return noise * (level / noise.square().mean(1).sqrt().clamp(min=FLOOR))[:, None]


def reverberate(wave: Tensor, decay_s: Tensor, direct_db: Tensor, sample_rate: int) -> Tensor:
    """``wave [B, S]`` in a room: plus its convolution with noise that falls by 60 dB in ``decay_s [B]``.

    The echoes together are ``direct_db [B]`` below the direct sound (Polack's model of late reverberation).
    """
    samples = wave.shape[1]
    size = 2 ** math.ceil(math.log2(samples + int(0.6 * sample_rate)))
    time = torch.arange(int(0.6 * sample_rate), device=wave.device) / sample_rate
    echoes = torch.randn(len(wave), len(time), device=wave.device) * 10 ** (-3 * time / decay_s[:, None])
    echoes = echoes * (time > 0.002)
    echoes = echoes / echoes.square().sum(1, keepdim=True).sqrt() * 10 ** (-direct_db[:, None] / 20)
    late = torch.fft.irfft(torch.fft.rfft(wave, size) * torch.fft.rfft(echoes, size), size)
    return wave + late[:, :samples]
