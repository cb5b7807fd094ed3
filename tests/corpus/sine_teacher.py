"""A teacher and a front end without any model, for the tests of the corpus."""

from __future__ import annotations

import re
import time

import numpy as np

from speech_mtp.corpus.teachers.base import SAMPLE_RATE, Teacher, Utterance
from speech_mtp.text.g2p.base import G2P
from speech_mtp.text.phonemes import Unit


class Sine(Teacher):
    """Speaks every character as 60 ms of a tone; the word "mute" in a sentence makes it silent."""

    name = "sine"
    voices = ("low", "high")
    licence = "none"

    def __init__(self, pause_s: float = 0.0) -> None:
        self._pause_s = pause_s

    def synthesize(self, text: str, voice: str, seed: int) -> Utterance:
        self.check(text, voice)
        time.sleep(self._pause_s)
        hertz = 100.0 if voice == "low" else 200.0
        frames = len(text) * 6
        wave = 0.3 * np.sin(2 * np.pi * hertz * np.arange(frames * 240) / SAMPLE_RATE + seed % 7)
        wave *= "mute" not in text
        said = " ".join("ə" for _ in text.split())
        ends = [end for word in re.finditer(r"\S+", text) for end in [word.end()] * 2][: len(said)]
        pitch = np.full(frames, hertz, np.float32)
        return Utterance(wave.astype(np.float32), pitch, 100.0, said, 0.06 * np.array(ends))


class Vowels(G2P):
    """Every word is a schwa."""

    name = "vowels"

    def phonemize(self, text: str) -> list[Unit]:
        return [Unit("ə", 0, True, *word.span()) for word in re.finditer(r"\S+", text)]
