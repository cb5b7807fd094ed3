"""A recogniser that hears what it was told to, and recordings for it."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Iterator

import numpy as np
import soundfile

from speech_mtp.frontends.base import NO_HINT, SAMPLE_RATE, Hint, Recogniser, Segment, Wave, Word


class FakeRecogniser(Recogniser):
    """Hears one of ``said`` a second, whatever the recording; knows English only. After ``held_after`` segments (None:
    all) it waits for ``go``."""

    name = "fake"

    def __init__(self, *said: str, held_after: int | None = None) -> None:
        self.said, self.held_after = said, len(said) if held_after is None else held_after
        self.heard_s = 0.0
        self.hint = NO_HINT
        self.segments_given = 0
        self.thread = ""
        self.go = threading.Event()
        self.is_warm = False

    def warm_up(self) -> None:
        self.is_warm = True

    def segments(self, wave: Wave, hint: Hint = NO_HINT) -> Iterator[Segment]:
        if hint.language not in (None, "en"):
            raise ValueError("The recogniser does not know this language; it knows en.")
        assert wave.dtype == np.float32
        self.heard_s, self.hint, self.thread = len(wave) / SAMPLE_RATE, hint, threading.current_thread().name
        for i, text in enumerate(self.said):
            assert i < self.held_after or self.go.wait(20)
            self.segments_given += 1
            words = tuple(Word(word, i + 0.1 * k, i + 0.1 * k + 0.1) for k, word in enumerate(text.split()))
            yield Segment(f" {text}", i, i + 1, "en", words if hint.words else ())


def tone(seconds: float, rate_hz: int = 24_000, pitch_hz: float = 220.0) -> Wave:
    """A sine."""
    return (0.3 * np.sin(2 * np.pi * pitch_hz * np.arange(int(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def recording(seconds: float = 1.5, kind: str = "wav", rate_hz: int = 24_000, subtype: str | None = None) -> bytes:
    """A file of a tone."""
    file = io.BytesIO()
    soundfile.write(file, tone(seconds, rate_hz), rate_hz, format=kind.upper(), subtype=subtype)
    return file.getvalue()


def spoiled(good: bytes, rng: random.Random) -> bytes:
    """A body as a broken client might send it: cut off, or with other bytes in places, most of them at its head."""
    content = bytearray(good[: rng.randrange(len(good))] if rng.random() < 0.3 else good)
    for _ in range(rng.choice((1, 3, 30))):
        if content:
            content[rng.randrange(min(len(content), rng.choice((400, len(content)))))] = rng.randrange(256)
    return bytes(content)
