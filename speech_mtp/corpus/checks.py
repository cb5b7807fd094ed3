"""Is an utterance fit to learn from: edges trimmed, level set, and reasons to refuse it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from speech_mtp.corpus.teachers.base import SAMPLE_RATE, Utterance

_FULL_SCALE = 0.98
_FRAME = SAMPLE_RATE // 100  # 10 ms


class AudioRules(BaseModel):
    """What an utterance must be. ``level_dbfs`` is the RMS of its speech; silence is 40 dB below its loudest 10 ms.

    ``clipped`` is the largest fraction of samples at full scale as the teacher gave them; ``lead_s`` and ``tail_s``
    are the silence that trimming leaves before and after the speech.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    min_seconds: float = 0.5
    max_seconds: float = 15.0
    min_chars_per_second: float = 6.0
    max_chars_per_second: float = 26.0
    max_pause_s: float = 1.5
    clipped: float = 1e-4
    min_peak: float = 0.02
    level_dbfs: float = -23.0
    lead_s: float = 0.1
    tail_s: float = 0.2


def fit(utterance: Utterance, text: str, rules: AudioRules) -> tuple[Utterance, str | None]:
    """The utterance trimmed and levelled, and why it must be refused (None: it is good)."""
    wave = utterance.wave
    if not np.isfinite(wave).all():
        return utterance, "not finite"
    if wave.size < _FRAME or np.abs(wave).max() < rules.min_peak:
        return utterance, "silent"
    if utterance_clipped(wave) > rules.clipped:
        return utterance, "clipped"
    loud = _loud_frames(wave)
    trimmed = _trim(utterance, int(loud[0]), int(loud[-1]) + 1, rules)
    seconds = len(trimmed.wave) / SAMPLE_RATE
    speech_s = (int(loud[-1]) + 1 - int(loud[0])) * _FRAME / SAMPLE_RATE
    if seconds < rules.min_seconds:
        return trimmed, "too short"
    if seconds > rules.max_seconds:
        return trimmed, "too long"
    if len(text) / speech_s < rules.min_chars_per_second:
        return trimmed, "too slow"
    if len(text) / speech_s > rules.max_chars_per_second:
        return trimmed, "too fast"
    if np.diff(loud).max(initial=0) * _FRAME / SAMPLE_RATE > rules.max_pause_s:
        return trimmed, "long pause"
    return replace(trimmed, wave=levelled(trimmed.wave, rules.level_dbfs)), None


def utterance_clipped(wave: NDArray[np.float32]) -> float:
    """Fraction of the samples ``[S]`` that lie in a flat top."""
    return len(flat_tops(wave)) / (len(wave) - 1)


def flat_tops(wave: NDArray[np.float32]) -> NDArray[np.intp]:
    """Indices of samples of ``wave [S]`` that have the same full-scale value as their neighbour: they are clipped."""
    top = np.abs(wave) >= 0.999
    return np.flatnonzero(top[1:] & top[:-1] & (wave[1:] == wave[:-1]))


def _loud_frames(wave: NDArray[np.float32]) -> NDArray[np.intp]:
    """Indices of the 10 ms frames less than 40 dB below the loudest."""
    frames = wave[: len(wave) // _FRAME * _FRAME].reshape(-1, _FRAME)
    rms = np.sqrt((frames**2).mean(axis=1))
    return np.flatnonzero(rms > 0.01 * rms.max())


def _trim(utterance: Utterance, first: int, last: int, rules: AudioRules) -> Utterance:
    """Keep frames ``first`` to ``last`` and the allowed edges; the start falls on a frame of the pitch."""
    grid = int(SAMPLE_RATE / utterance.f0_rate_hz) if utterance.f0_rate_hz else 1
    start = max(0, first * _FRAME - round(rules.lead_s * SAMPLE_RATE)) // grid * grid
    stop = min(len(utterance.wave), last * _FRAME + round(rules.tail_s * SAMPLE_RATE))
    pitch = utterance.f0_hz
    if pitch is not None:
        pitch = pitch[start // grid : -(-stop // grid)]
    ends = utterance.ends_s
    if ends is not None:
        ends = (ends - start / SAMPLE_RATE).clip(0, (stop - start) / SAMPLE_RATE)
    return replace(utterance, wave=utterance.wave[start:stop], f0_hz=pitch, ends_s=ends)


def levelled(wave: NDArray[np.float32], level_dbfs: float) -> NDArray[np.float32]:
    """One gain for the whole utterance: its RMS at ``level_dbfs``, unless a peak would pass full scale."""
    gain = 10 ** (level_dbfs / 20) / np.sqrt((wave.astype(np.float64) ** 2).mean())
    scaled: NDArray[np.float32] = (wave * min(gain, _FULL_SCALE / np.abs(wave).max())).astype(np.float32)
    return scaled
