"""A second predicted mean opinion score: DistillMOS (Stahl and Gamper 2025, arXiv:2502.05356), learned from a larger
judge that hears by XLS-R's features."""

from __future__ import annotations

import contextlib
import io
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from speech_mtp import plugins
from speech_mtp.evaluation.judge_input import judge_wave


@torch.inference_mode()
def distill_mos(wave: Tensor, sample_rate: int) -> float:
    """From 1 (bad) to 5 (excellent), the mean over windows of 7.68 s of ``wave [S]``; shorter audio is repeated. How
    loud it is makes no difference. Raises ``ValueError`` for unusable audio and ``MissingExtra`` without ``eval``."""
    samples = torch.from_numpy(judge_wave(wave, sample_rate))
    return float(_model()(samples[None]))


@lru_cache(maxsize=1)
def _model() -> Any:
    package = plugins.require("distillmos", "eval")
    with contextlib.redirect_stdout(io.StringIO()):  # it says which weights it loads
        return package.ConvTransformerSQAModel().eval()
