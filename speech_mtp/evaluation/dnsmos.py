"""Predicted mean opinion scores of speech: DNSMOS P.835 and P.808 (Reddy et al. 2021, 2022)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

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
    scores = _judge()(judge_wave(wave, sample_rate), JUDGE_RATE, is_personalized_MOS=False)
    return Opinion(
        overall=float(scores["ovrl_mos"]),
        signal=float(scores["sig_mos"]),
        background=float(scores["bak_mos"]),
        p808=float(scores["p808_mos"]),
    )


@cache
def _judge() -> Any:
    """What ``speechmos.dnsmos.run`` makes, but on one thread: two are no faster, and wait for each other busily."""
    package, onnxruntime = plugins.require("speechmos.dnsmos", "eval"), plugins.require("onnxruntime", "eval")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    folder = Path(str(package.__file__)).parent / "dnsmos_models"
    paths = [str(folder / name) for name in ("sig_bak_ovr.onnx", "model_v8.onnx")]
    judge = package.DNSMOS(*paths)
    judge.onnx_sess, judge.p808_onnx_sess = (onnxruntime.InferenceSession(path, options) for path in paths)
    return judge
