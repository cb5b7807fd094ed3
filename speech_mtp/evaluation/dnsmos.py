"""Predicted mean opinion scores of speech: DNSMOS P.835 and P.808 (Reddy et al. 2021, 2022)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from speech_mtp import plugins
from speech_mtp.evaluation.judge_input import JUDGE_RATE, judge_wave


@dataclass(frozen=True)
class Opinion:
    """Predicted scores from 1 (bad) to 5 (excellent)."""

    overall: float
    signal: float
    background: float
    p808: float


def dnsmos(wave: Tensor, sample_rate: int) -> Opinion:
    """Scores of ``wave [S]``; shorter than 9.01 s it is repeated, longer it is scored in hops of 1 s and averaged.

    Audio above full scale is scaled down to a peak of 1 first. Raises ``ValueError`` for unusable audio.
    """
    judge = plugins.require("speechmos.dnsmos", "eval")
    scores = judge.run(judge_wave(wave, sample_rate), JUDGE_RATE)
    return Opinion(
        overall=float(scores["ovrl_mos"]),
        signal=float(scores["sig_mos"]),
        background=float(scores["bak_mos"]),
        p808=float(scores["p808_mos"]),
    )
