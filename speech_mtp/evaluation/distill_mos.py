"""A second predicted mean opinion score: DistillMOS (Stahl and Gamper 2025, arXiv:2502.05356), learned from a larger
judge that hears by XLS-R's features."""

from __future__ import annotations

import contextlib
import io
import math
from functools import lru_cache
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from speech_mtp import plugins
from speech_mtp.evaluation.judge_input import JUDGE_RATE, judge_wave

WINDOW = 122_880
"""Samples that it hears at once: 7.68 s."""


@torch.inference_mode()
def distill_mos(wave: Tensor, sample_rate: int) -> float:
    """From 1 (bad) to 5 (excellent): the mean over windows of 7.68 s of ``wave [S]``, spread evenly and at most a
    second apart; silence is put behind shorter audio. How loud a window is makes no difference. Silence and noise have
    a score too. Raises ``ValueError`` for unusable audio and ``MissingExtra`` without ``eval``."""
    samples = torch.from_numpy(judge_wave(wave, sample_rate))
    samples = F.pad(samples, (0, max(0, WINDOW - len(samples))))
    spare, model = len(samples) - WINDOW, _model()
    count = math.ceil(spare / JUDGE_RATE)
    starts = [int(number / max(1, count) * spare) for number in range(count + 1)]
    return fmean(float(model(samples[None, start : start + WINDOW])) for start in starts)


@lru_cache(maxsize=1)
def _model() -> Any:
    package = plugins.require("distillmos", "eval")
    with contextlib.redirect_stdout(io.StringIO()):  # it says which weights it loads
        return package.ConvTransformerSQAModel().eval()
