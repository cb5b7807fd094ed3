"""A whole utterance with the time it took: what ``say`` and the evaluation report."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from speech_mtp.lm.bundle import SpeechModel
from speech_mtp.streaming.pipeline import Chunk, speak
from speech_mtp.types import Finish, Sampling, WordTime

WARM_UP = "Hello there."


@dataclass(frozen=True)
class Utterance:
    """``wave [S]`` and how it came about. ``compute_s`` and ``first_audio_s`` leave out time spent waiting for text."""

    wave: Tensor
    sample_rate: int
    words: list[WordTime]
    steps: int
    frames: int
    finish: Finish
    compute_s: float
    first_audio_s: float

    @property
    def seconds(self) -> float:
        return len(self.wave) / self.sample_rate


def speak_timed(
    model: SpeechModel,
    text: str | Iterable[str],
    voice: str | Tensor | None = None,
    sampling: Sampling | None = None,
    best_of: int = 1,
) -> Utterance:
    """Speak to the end and time it. Errors as for :func:`speech_mtp.streaming.pipeline.speak`."""
    clock = _Clock()
    chunks: list[Chunk] = []
    first: float | None = None
    texts = text if isinstance(text, str) else clock.waiting_for(text)
    for chunk in speak(model, texts, voice, sampling, best_of=best_of):
        chunks.append(chunk)
        if first is None and chunk.wave.numel():
            first = clock.elapsed_s()
    total = clock.elapsed_s()
    last = chunks[-1]
    assert last.finish is not None, "speak ends with a chunk that says why"
    wave = torch.cat([chunk.wave for chunk in chunks])
    words = [word for chunk in chunks for word in chunk.words]
    rate = model.codec.spec.sample_rate
    return Utterance(wave, rate, words, last.steps, last.frames, last.finish, total, total if first is None else first)


def warm_up(model: SpeechModel) -> None:
    """Speak one short utterance and drop it, so that what is timed next is not the first of its process."""
    speak_timed(model, WARM_UP)


class _Clock:
    """Time since it was made, without the time in which somebody else was writing text."""

    def __init__(self) -> None:
        self._start, self._waited = time.perf_counter(), 0.0

    def elapsed_s(self) -> float:
        return time.perf_counter() - self._start - self._waited

    def waiting_for(self, texts: Iterable[str]) -> Iterator[str]:
        source = iter(texts)
        while True:
            before = time.perf_counter()
            text = next(source, None)
            self._waited += time.perf_counter() - before
            if text is None:
                return
            yield text
