"""What each stream carries: an utterance decoded with one stream of another, in words, melody and voice."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from speech_mtp.codecs.base import Codec
from speech_mtp.evaluation.codec_report import Sample
from speech_mtp.evaluation.f0 import log_f0_correlation
from speech_mtp.evaluation.judges import Judges
from speech_mtp.evaluation.speaker_similarity import speaker_similarity
from speech_mtp.evaluation.wer import WordErrors, normalize, total_errors, word_errors
from speech_mtp.types import Codes

NOTHING, TIMBRE = "nothing", "timbre"


def stream_swaps(
    codec: Codec,
    samples: Sequence[Sample],
    pairs: int,
    judges: Judges | None = None,
    seed: int = 0,
    report: Callable[[str], None] = lambda name: None,
) -> dict[str, dict[str, Any]] | None:
    """By the stream that is taken from a donor: an utterance of another text, and another voice where there are two.

    Each figure is told against the utterance itself (``own``) and the donor. The donor's stream is stretched to the
    length of the utterance, so donors of nearly the same length are taken. None where no pair can be formed.
    """
    judges = judges or Judges()
    rng = random.Random(seed)
    spoken = [s for s in samples if s.text and normalize(s.text)]
    chosen = [(a, b) for a in rng.sample(spoken, len(spoken)) if (b := _donor(a, spoken)) is not None][:pairs]
    if not chosen:
        return None
    rate = codec.spec.sample_rate
    voices = _voices(judges, samples, rate)
    found: dict[str, list[_Heard]] = {}
    for i, (a, b) in enumerate(chosen):
        report(f"swaps of {i + 1} of {len(chosen)}")
        ours, theirs = (codec.encode(s.wave[None, None]) for s in (a, b))
        tracks = judges.pitch(a.wave, rate), _stretched(judges.pitch(b.wave, rate), len(a.wave) / len(b.wave))
        for name, codes in _swaps(codec, ours, theirs):
            wave = codec.decode(codes)[0, 0]
            found.setdefault(name, []).append(_hear(judges, wave, rate, (a, b), tracks, voices))
    return {name: _summary(heard) for name, heard in found.items()}


def _donor(a: Sample, samples: Sequence[Sample]) -> Sample | None:
    """The utterance of another text that is nearest in length, of another voice if there is one."""
    others = [b for b in samples if b.text != a.text]
    others = [b for b in others if b.voice != a.voice] or others
    return min(others, key=lambda b: abs(len(b.wave) - len(a.wave)), default=None)


def _swaps(codec: Codec, ours: Codes, theirs: Codes) -> list[tuple[str, Codes]]:
    length, other = ours.frames.shape[2], theirs.frames.shape[2]
    stretched = theirs.frames[:, :, torch.arange(length) * other // length]
    swapped = [(NOTHING, ours)]
    for name, part in codec.spec.streams.items():
        frames = ours.frames.clone()
        frames[:, part] = stretched[:, part]
        swapped.append((name, replace(ours, frames=frames)))
    if codec.spec.timbre_dim:
        swapped.append((TIMBRE, replace(ours, timbre=theirs.timbre)))
    return swapped


def _stretched(track: Tensor, factor: float) -> Tensor:
    length = max(1, round(len(track) * factor))
    return track[(torch.arange(length) * len(track) // length)]


def _voices(judges: Judges, samples: Sequence[Sample], rate: int) -> dict[str, Tensor]:
    """The mean speaker vector of each voice."""
    found: dict[str, list[Tensor]] = {}
    for sample in samples:
        vector = judges.speaker(sample.wave, rate)
        if vector is not None:
            found.setdefault(sample.voice, []).append(vector)
    return {voice: torch.stack(vectors).mean(0) for voice, vectors in found.items()}


_Heard = dict[str, tuple[Any, Any]]
"""Figure -> (against the utterance itself, against the donor); a pair of None where it cannot be told."""


def _hear(
    judges: Judges,
    wave: Tensor,
    rate: int,
    pair: tuple[Sample, Sample],
    tracks: tuple[Tensor, Tensor],
    voices: dict[str, Tensor],
) -> _Heard:
    text, pitch, speaker = judges.transcribe(wave, rate), judges.pitch(wave, rate), judges.speaker(wave, rate)
    return {
        "wer": (word_errors(pair[0].text or "", text), word_errors(pair[1].text or "", text)),
        "f0_correlation": (_correlation(tracks[0], pitch), _correlation(tracks[1], pitch)),
        "similarity": tuple(  # type: ignore[dict-item]
            None if speaker is None or s.voice not in voices else speaker_similarity(speaker, voices[s.voice])
            for s in pair
        ),
    }


def _correlation(first: Tensor, second: Tensor) -> float | None:
    try:
        return log_f0_correlation(first, second)
    except ValueError:
        return None


def _summary(heard: Sequence[_Heard]) -> dict[str, Any]:
    figures: dict[str, Any] = {"trials": len(heard)}
    for name in heard[0]:
        for i, whose in enumerate(("own", "donor")):
            figures[f"{name}_{whose}"] = _total([h[name][i] for h in heard if h[name][i] is not None])
    return figures


def _total(values: Sequence[Any]) -> float | None:
    if not values:
        return None
    return total_errors(values).wer if isinstance(values[0], WordErrors) else fmean(values)
