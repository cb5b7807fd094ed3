"""How alike two voices sound: cosine of speaker embeddings (GE2E, Wan et al. 2018; package resemblyzer)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from speech_mtp import plugins
from speech_mtp.evaluation.judge_input import JUDGE_RATE, judge_wave


def speaker_embedding(wave: Tensor, sample_rate: int) -> Tensor:
    """``wave [S]`` -> unit vector ``[256]``; long silences are cut out first.

    Raises ``ValueError`` for unusable audio and for audio in which the voice detector finds no speech.
    """
    resemblyzer = plugins.require("resemblyzer", "eval")
    samples = judge_wave(wave, sample_rate)
    spoken = resemblyzer.preprocess_wav(samples, JUDGE_RATE) if samples.any() else samples[:0]
    if spoken.size == 0:
        raise ValueError("no speech was found in the audio, so it has no speaker to compare.")
    return torch.from_numpy(_encoder().embed_utterance(spoken))


def speaker_similarity(first: Tensor, second: Tensor) -> float:
    """Cosine of two embeddings ``[256]``, in [-1, 1]."""
    return float(torch.cosine_similarity(first, second, dim=0))


@lru_cache(maxsize=1)
def _encoder() -> Any:
    return plugins.require("resemblyzer", "eval").VoiceEncoder("cpu", verbose=False)
