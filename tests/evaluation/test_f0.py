from __future__ import annotations

import math

import pytest
import torch

from speech_mtp.evaluation.f0 import log_f0, log_f0_correlation


def _glide(start_hz: float, end_hz: float, seconds: float = 0.6, sample_rate: int = 16000) -> torch.Tensor:
    phase = torch.linspace(start_hz, end_hz, int(seconds * sample_rate)).cumsum(0) * (2 * math.pi / sample_rate)
    return 0.3 * sum(torch.sin(k * phase) / k for k in range(1, 6))


def test_finds_a_glide_and_its_mirror_image() -> None:
    pytest.importorskip("librosa", reason="needs the eval extra")
    up = log_f0(_glide(100, 200), 16000)
    middle = up[len(up) // 2].exp().item()
    assert middle == pytest.approx(150, rel=0.03)
    assert log_f0_correlation(up, log_f0(_glide(120, 240), 16000)) > 0.98
    assert log_f0_correlation(up, log_f0(_glide(200, 100), 16000)) < -0.9


def test_only_frames_voiced_in_both_count() -> None:
    nan = float("nan")
    first = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 9.0, nan, 0.0])
    second = torch.tensor([2.0, 4.0, 6.0, 8.0, 10.0, nan, 1.0])
    assert log_f0_correlation(first, second) == pytest.approx(1.0)
    with pytest.raises(ValueError, match="voiced in both"):
        log_f0_correlation(first[4:], second[4:])
    with pytest.raises(ValueError, match="constant"):
        log_f0_correlation(torch.ones(6), torch.arange(6.0))
