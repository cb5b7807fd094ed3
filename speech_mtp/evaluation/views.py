"""Views of a recording: what is said and when stays, the voice or the surroundings change. The timing stays exactly.

Pitch is changed by TD-PSOLA (Moulines and Charpentier 1990): pieces of two periods are set at other distances, so the
formants stay. Formants are moved by warping a cepstral envelope of the spectrum; harmonics and phases stay. Every
view has the length of the recording; with factor 1 both give the recording back.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speech_mtp.evaluation.f0 import COARSE_RATE_HZ, coarse_log_f0

PITCH = 0.72
FORMANTS = 1 / 1.13
NOISE_DB = 20.0
ROOM_S, ROOM_DB = 0.3, 5.0
"""Seconds in which the reverberation falls by 60 dB, and how much louder the direct sound is."""

UNVOICED_STEP_S = 0.005
ENVELOPE_S = 0.0015
"""Quefrencies above this belong to the harmonics, not to the envelope."""

View = Callable[[Tensor, int, int], Tensor]
"""``(wave [S], sample rate, seed)`` -> the changed wave ``[S]``."""

VIEWS: dict[str, View] = {
    f"pitch x {PITCH}": lambda wave, rate, seed: shift_pitch(wave, rate, PITCH),
    "formants 13 %": lambda wave, rate, seed: shift_formants(wave, rate, FORMANTS),
    "both": lambda wave, rate, seed: shift_formants(shift_pitch(wave, rate, PITCH), rate, FORMANTS),
    f"noise {NOISE_DB:.0f} dB": lambda wave, rate, seed: add_noise(wave, NOISE_DB, seed),
    "room": lambda wave, rate, seed: add_room(wave, rate, ROOM_S, ROOM_DB, seed),
}


def shift_pitch(wave: Tensor, sample_rate: int, factor: float) -> Tensor:
    """``wave [S]`` with its pitch times ``factor`` (0.6 to 1.7), as loud as before. Unvoiced sound is copied.

    1. a mark in every period, and every 5 ms where unvoiced, 2. marks of the new pitch, 3. at each of them the piece
    around the nearest old mark, faded in and out over the distances to that mark's neighbours.
    """
    samples = wave.detach().cpu().double().numpy()
    marks, voiced = _period_marks(samples, coarse_log_f0(wave, sample_rate), sample_rate)
    distances = np.diff(marks)
    out = np.zeros(len(samples))
    at = float(marks[0])
    while at <= marks[-1]:
        k = int(np.searchsorted(marks, at))
        k -= int(k > 0 and (k == len(marks) or at - marks[k - 1] < marks[k] - at))
        if not voiced[k]:
            at = max(at, float(marks[k])) if marks[k] - at < UNVOICED_STEP_S * sample_rate else at
        left, right = distances[max(k - 1, 0)], distances[min(k, len(distances) - 1)]
        gain = factor**-0.5 if voiced[k] else 1.0
        _add_piece(out, samples, marks[k], round(at), left, right, gain)
        at += max(1.0, right / factor if voiced[k] else right)
    return torch.from_numpy(out).to(wave)


def _period_marks(
    samples: NDArray[np.float64], log_f0: Tensor, sample_rate: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Marks from 0 to S, and whether each is voiced. A voiced mark lies where the sound is most like at the last."""
    hertz = log_f0.exp().nan_to_num(0.0).numpy()
    marks, voiced = [0], [False]
    while marks[-1] < len(samples):
        last = marks[-1]
        pitch = float(hertz[min(int(last / sample_rate * COARSE_RATE_HZ), len(hertz) - 1)])
        if pitch > 0:
            period = round(sample_rate / pitch)
            marks.append(last + (_best_lag(samples, last, period) if voiced[-1] else period))
        else:
            marks.append(last + round(UNVOICED_STEP_S * sample_rate))
        voiced.append(pitch > 0)
    return np.array(marks), np.array(voiced)


def _best_lag(samples: NDArray[np.float64], mark: int, period: int) -> int:
    """The lag within 15 % of ``period`` at which the sound around ``mark`` is most like itself."""
    half, slack = period // 2, max(1, int(0.15 * period))
    ours = samples[max(mark - half, 0) : mark + half]
    first = max(mark - half, 0) + period - slack
    theirs = samples[first : first + len(ours) + 2 * slack]
    if len(theirs) < len(ours) + 2 * slack:
        return period
    likeness = np.correlate(theirs, ours, "valid")
    return period - slack + int(likeness.argmax())


def _add_piece(
    out: NDArray[np.float64], samples: NDArray[np.float64], source: int, target: int, left: int, right: int, gain: float
) -> None:
    """Add ``samples[source - left : source + right]`` around ``target``, faded in over ``left``, out over ``right``."""
    rise = 0.5 - 0.5 * np.cos(np.pi * np.arange(left) / left)
    fall = 0.5 + 0.5 * np.cos(np.pi * np.arange(right) / right)
    window = gain * np.concatenate([rise, fall])
    first = max(0, left - source, left - target)
    last = min(left + right, len(samples) - source + left, len(out) - target + left)
    if first < last:
        piece = samples[source - left + first : source - left + last] * window[first:last]
        out[target - left + first : target - left + last] += piece


def shift_formants(wave: Tensor, sample_rate: int, factor: float) -> Tensor:
    """``wave [S]`` with its spectral envelope moved to ``factor`` times its frequencies, as loud as before."""
    size = 1 << round(np.log2(0.04 * sample_rate))
    window = torch.hann_window(size, device=wave.device)
    spectrum = torch.stft(wave, size, size // 4, window=window, return_complex=True)  # [bins, frames]
    log_magnitude = spectrum.abs().clamp_min(1e-5).log()
    cepstrum = torch.fft.irfft(log_magnitude, dim=0)
    cut = round(ENVELOPE_S * sample_rate)
    cepstrum[cut : len(cepstrum) - cut + 1] = 0
    envelope = torch.fft.rfft(cepstrum, dim=0).real
    bins = torch.arange(len(envelope), device=wave.device, dtype=wave.dtype) / factor
    low = bins.floor().long().clamp(max=len(envelope) - 1)
    high = (low + 1).clamp(max=len(envelope) - 1)
    part = (bins - low).clamp(0, 1)[:, None]
    moved = envelope[low] * (1 - part) + envelope[high] * part
    changed = torch.istft(spectrum * (moved - envelope).exp(), size, size // 4, window=window, length=len(wave))
    return _as_loud(changed, wave)


def add_noise(wave: Tensor, decibels: float, seed: int) -> Tensor:
    """``wave [S]`` and white noise, so many decibels below the mean power of the wave."""
    noise = torch.randn(len(wave), generator=torch.Generator().manual_seed(seed)).to(wave)
    return wave + noise * wave.square().mean().sqrt() * 10 ** (-decibels / 20)


def add_room(wave: Tensor, sample_rate: int, seconds: float, decibels: float, seed: int) -> Tensor:
    """``wave [S]`` and its reverberation: noise that falls by 60 dB in ``seconds`` and starts 2 ms after the direct
    sound, which carries ``decibels`` more energy. As loud as before."""
    length = round(seconds * sample_rate)
    noise = torch.randn(length, generator=torch.Generator().manual_seed(seed))
    tail = noise * 10 ** (-3 * torch.arange(length) / length)
    tail[: round(0.002 * sample_rate)] = 0
    tail *= 10 ** (-decibels / 20) / tail.norm()
    tail[0] = 1.0
    size = len(wave) + length
    heard = torch.fft.irfft(torch.fft.rfft(wave, size) * torch.fft.rfft(tail.to(wave), size), size)[: len(wave)]
    return _as_loud(heard, wave)


def _as_loud(changed: Tensor, wave: Tensor) -> Tensor:
    return changed * (wave.norm() / changed.norm().clamp_min(1e-8))
