"""hibari (Apache-2.0): one American female voice at 24 kHz, a 7.9 MB model distilled from Kokoro."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from speech_mtp import plugins
from speech_mtp.corpus.teachers.base import SAMPLE_RATE, Teacher, Utterance

F0_RATE_HZ = 80.0
UNVOICED_BELOW_HZ = 40.0


class Hibari(Teacher):
    """The voice "heart", with the pitch curve that drove it. The same seed gives the same audio."""

    name = "hibari"
    voices = ("heart",)
    licence = "Apache-2.0 (hibari-tts, distilled from Kokoro-82M)"

    def synthesize(self, text: str, voice: str, seed: int) -> Utterance:
        self.check(text, voice)
        pieces = self._tts.phonemize(text)
        rng = np.random.default_rng(seed)
        spoken = [self._speak(self._tts.ids(piece), rng) for piece in pieces]
        waves, pitches = zip(*spoken, strict=True)
        return Utterance(np.concatenate(waves), np.concatenate(pitches), F0_RATE_HZ, " ".join(pieces))

    def _speak(self, ids: list[int], rng: np.random.Generator) -> tuple[Any, Any]:
        """``Hibari.from_ids`` of the package, keeping the pitch: wave ``[S]`` and ``f0 [S / 300]``."""
        dsp = plugins.require("hibari.dsp", "teachers")
        inputs = {"ids": np.asarray([ids], np.int64), "speed": np.ones(1, np.float32)}
        lh, th, ln, lr, phi, f0 = (output[0] for output in self._tts.sess.run(None, inputs))
        wave = dsp.synth(lh, th, ln, lr, phi, f0, rng)
        assert len(wave) * F0_RATE_HZ == len(f0) * SAMPLE_RATE, (len(wave), len(f0))
        return wave, np.where(f0 < UNVOICED_BELOW_HZ, 0.0, f0).astype(np.float32)

    @cached_property
    def _tts(self) -> Any:
        return plugins.require("hibari", "teachers").Hibari(voice=self.voices[0], threads=1)
