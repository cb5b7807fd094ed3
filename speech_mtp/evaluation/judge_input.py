"""What every judge of audio demands of its input: mono, finite, not empty, at the judge's own rate."""

from __future__ import annotations

import numpy as np
import torch
import torchaudio.functional as F
from numpy.typing import NDArray
from torch import Tensor

JUDGE_RATE = 16000
"""Hz. Whisper, DNSMOS and the speaker encoder all listen at this rate."""


def judge_wave(wave: Tensor, sample_rate: int) -> NDArray[np.float32]:
    """``wave [S]`` float at ``sample_rate`` Hz -> float32 ``[S']`` at 16 kHz, scaled down if its peak exceeds 1.

    Raises ``ValueError`` for audio that is not one-dimensional, is empty, or holds NaN or infinity.
    """
    if wave.dim() != 1 or wave.numel() == 0:
        raise ValueError(f"audio of shape {tuple(wave.shape)} cannot be judged; give one non-empty mono channel [S].")
    mono = wave.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(mono).all()):
        raise ValueError("audio with NaN or infinite samples cannot be judged; check the model that made it.")
    if sample_rate != JUDGE_RATE:
        mono = F.resample(mono, sample_rate, JUDGE_RATE)
    samples: NDArray[np.float32] = (mono / mono.abs().max().clamp_min(1.0)).numpy()
    return samples
