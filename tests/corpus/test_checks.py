from __future__ import annotations

import numpy as np
import pytest

from speech_mtp.corpus.checks import AudioRules, fit
from speech_mtp.corpus.teachers.base import Utterance

RULES = AudioRules()
TEXT = "x" * 30


def _tone(seconds: float, amplitude: float = 0.3) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * 120 * np.arange(int(seconds * 24000)) / 24000)).astype(np.float32)


def _silence(seconds: float) -> np.ndarray:
    return np.zeros(int(seconds * 24000), np.float32)


def test_edges_are_trimmed_with_the_pitch_and_the_level_is_set() -> None:
    wave = np.concatenate([_silence(0.5), _tone(2.0), _silence(0.5)])
    pitch = np.repeat(np.array([0, 120, 0], np.float32), [40, 160, 40])  # 80 Hz
    ends = np.array([0.6, 1.5, 2.5, 3.0])
    good, reason = fit(Utterance(wave, pitch, 80.0, "x", ends), TEXT, RULES)
    assert reason is None
    assert len(good.wave) / 24000 == pytest.approx(2.3, abs=0.02)
    assert good.f0_hz is not None
    assert len(good.f0_hz) == -(-len(good.wave) // 300)
    assert np.flatnonzero(good.f0_hz)[0] == pytest.approx(np.flatnonzero(np.abs(good.wave) > 1e-3)[0] / 300, abs=1)
    rms = np.sqrt((good.wave.astype(float) ** 2).mean())
    assert 20 * np.log10(rms) == pytest.approx(-23.0, abs=0.1)
    assert good.phonemes == "x"
    assert good.ends_s is not None
    assert good.ends_s == pytest.approx([0.2, 1.1, 2.1, 2.3], abs=0.015)  # the speech began at 0.5 s, and does at 0.1 s


def test_peaks_stay_below_full_scale() -> None:
    wave = 0.02 * _tone(2.0, 1.0)
    wave[24000] = 0.9
    good, reason = fit(Utterance(wave), TEXT, AudioRules(max_pause_s=9, max_chars_per_second=9999))
    assert reason is None
    assert np.abs(good.wave).max() <= 0.981


@pytest.mark.parametrize(
    ("wave", "reason"),
    [
        (_silence(2), "silent"),
        (np.full(48000, np.nan, np.float32), "not finite"),
        (np.clip(_tone(2, 3.0), -1, 1), "clipped"),
        (_tone(0.1), "too short"),
        (_tone(20), "too long"),
        (_tone(14), "too slow"),
        (_tone(0.8), "too fast"),
        (np.concatenate([_tone(1), _silence(1.8), _tone(1)]), "long pause"),
    ],
)
def test_reasons(wave: np.ndarray, reason: str) -> None:
    assert fit(Utterance(wave), TEXT, RULES)[1] == reason


def test_loud_but_unclipped_audio_is_turned_down() -> None:
    good, reason = fit(Utterance(_tone(2, 1.3)), TEXT, RULES)
    assert reason is None
    assert np.abs(good.wave).max() < 0.2
