"""Does the melody survive: correlation of log-F0 tracks, on frames that are voiced in both.

F0 is estimated with pYIN (Mauch & Dixon 2014, in librosa), 100 frames per second, 60 to 500 Hz.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speech_mtp import plugins
from speech_mtp.evaluation.judge_input import JUDGE_RATE, judge_wave

FRAME_RATE_HZ = 100
COARSE_RATE_HZ = 50
MIN_COMMON_FRAMES = 5


def log_f0(wave: Tensor, sample_rate: int) -> Tensor:
    """``wave [S]`` -> ``[F]`` natural log of Hz at 100 frames per second; NaN where unvoiced."""
    librosa = plugins.require("librosa", "eval")
    samples = judge_wave(wave, sample_rate)
    hop = JUDGE_RATE // FRAME_RATE_HZ
    hertz, _, _ = librosa.pyin(samples, fmin=60, fmax=500, sr=JUDGE_RATE, frame_length=1024, hop_length=hop)
    return torch.from_numpy(hertz).float().log()


def coarse_log_f0(wave: Tensor, sample_rate: int) -> Tensor:
    """As :func:`log_f0` in steps of 0.3 semitones at 50 frames per second: a quarter of the time or less."""
    librosa = plugins.require("librosa", "eval")
    hertz, _, _ = librosa.pyin(
        judge_wave(wave, sample_rate),
        fmin=60,
        fmax=500,
        sr=JUDGE_RATE,
        frame_length=1024,
        hop_length=JUDGE_RATE // COARSE_RATE_HZ,
        resolution=0.3,
        n_thresholds=20,
    )
    return torch.from_numpy(hertz).float().log()


def log_f0_correlation(first: Tensor, second: Tensor) -> float:
    """Pearson correlation of two tracks ``[F]`` (NaN = unvoiced); the longer one is cut to the shorter.

    Raises ``ValueError`` if fewer than five frames are voiced in both, or one track does not vary.
    """
    length = min(len(first), len(second))
    pair = torch.stack([first[:length], second[:length]]).double()
    pair = pair[:, torch.isfinite(pair).all(dim=0)]
    if pair.shape[1] < MIN_COMMON_FRAMES:
        raise ValueError(
            f"only {pair.shape[1]} frames are voiced in both; {MIN_COMMON_FRAMES} are needed to correlate."
        )
    if bool((pair.std(dim=1) == 0).any()):
        raise ValueError("an F0 track is constant, so its correlation is not defined.")
    return float(torch.corrcoef(pair)[0, 1])
