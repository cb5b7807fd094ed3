"""hibari (Apache-2.0): one American female voice at 24 kHz, a 7.9 MB model distilled from Kokoro.

Its vocoder is given pitch and spectrum apart, so a second speaker can be made from the first: the model speaks faster
at a lower pitch, and the sound is then slowed, which lengthens the vocal tract and lowers the pitch once more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from speech_mtp import plugins
from speech_mtp.corpus.teachers._onnx import DURATION_S, ends_of, session
from speech_mtp.corpus.teachers.base import SAMPLE_RATE, Teacher, Utterance

F0_RATE_HZ = 80.0
UNVOICED_BELOW_HZ = 40.0
_DURATIONS = "/Clip_output_0"
"""How many steps of 25 ms each phoneme takes."""


@dataclass(frozen=True)
class Speaker:
    """How a voice differs from the model's own: ``slowing`` multiplies formants and pitch together (played slower, at
    the model's pace times ``pace`` all the same), ``pitch`` multiplies the pitch alone."""

    slowing: Fraction = Fraction(1)
    pitch: float = 1.0
    pace: float = 1.0


SPEAKERS = {"heart": Speaker(), "drew": Speaker(slowing=Fraction(9, 10), pitch=5 / 9, pace=0.96)}


def altered(number: int) -> Speaker:
    """Speaker ``number`` of those made from the model's voice: vocal tract, pitch and pace drawn at random."""
    rng = np.random.default_rng((0x414C54, number))
    slowing = Fraction(int(rng.integers(17, 24)), 20)
    hertz = float(np.exp(rng.uniform(np.log(95), np.log(280))))
    return Speaker(slowing, hertz / (190 * float(slowing)), float(rng.uniform(0.9, 1.1)))


class Hibari(Teacher):
    """The model's own voice "heart" (female, about 190 Hz) and "drew" made from it (male, about 95 Hz), with the
    pitch curve that drove them. The same seed gives the same audio.

    ``speakers`` more, ``alt00`` and so on, are made from it in the same way (see :func:`altered`).
    """

    name = "hibari"
    licence = "Apache-2.0 (hibari-tts, distilled from Kokoro-82M)"

    def __init__(self, speakers: int = 0) -> None:
        self._speakers = SPEAKERS | {f"alt{number:02}": altered(number) for number in range(speakers)}
        self.voices = tuple(self._speakers)

    def synthesize(self, text: str, voice: str, seed: int) -> Utterance:
        self.check(text, voice)
        speaker = self._speakers[voice]
        pieces = self._tts.phonemize(text)
        rng = np.random.default_rng(seed)
        spoken = [self._speak(piece, speaker, rng) for piece in pieces]
        waves, pitches, ends = zip(*spoken, strict=True)
        wave, pitch = np.concatenate(waves), np.concatenate(pitches)
        slowing = float(speaker.slowing)
        hertz = np.asarray(pitch * slowing, np.float32)
        seconds = joined(ends) * (DURATION_S / slowing)
        return Utterance(slowed(wave, speaker.slowing), hertz, F0_RATE_HZ * slowing, " ".join(pieces), seconds)

    def _speak(self, phonemes: str, speaker: Speaker, rng: np.random.Generator) -> tuple[Any, Any, Any]:
        """``Hibari.from_phonemes`` of the package, keeping the pitch: wave ``[S]``, ``f0 [S / 300]`` and where each
        character ends, in steps of 600 samples."""
        ids = self._tts.ids(phonemes)
        dsp = plugins.require("hibari.dsp", "teachers")
        speed = speaker.pace / float(speaker.slowing)
        inputs = {"ids": np.asarray([ids], np.int64), "speed": np.asarray([speed], np.float32)}
        *spectra, durations = self._tts.sess.run(None, inputs)
        lh, th, ln, lr, phi, f0 = (output[0] for output in spectra)
        f0 = np.where(f0 < UNVOICED_BELOW_HZ, 0.0, f0 * speaker.pitch).astype(np.float32)
        wave = dsp.synth(lh, th, ln, lr, phi, f0, rng)
        assert len(wave) * F0_RATE_HZ == len(f0) * SAMPLE_RATE, (len(wave), len(f0))
        ends = ends_of(phonemes, self._tts.vocab, durations.ravel())
        assert round(ends[-1] * DURATION_S * SAMPLE_RATE) == len(wave), (ends[-1], len(wave))
        return wave, f0, ends

    @cached_property
    def _tts(self) -> Any:
        package = plugins.require("hibari", "teachers")
        tts = package.Hibari(voice="heart", threads=1)
        tts.sess = session((Path(str(package.__file__)).parent / "assets/hibari.onnx").read_bytes(), _DURATIONS)
        return tts


def joined(ends: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Ends of pieces, each from its own beginning on, as those of the whole; the space between two takes no time."""
    whole: list[NDArray[np.float64]] = []
    begins = 0.0
    for number, piece in enumerate(ends):
        whole += [np.array([begins])] * (number > 0) + [begins + piece]
        begins += piece[-1]
    return np.concatenate(whole)


def slowed(wave: NDArray[np.float32], factor: Fraction) -> NDArray[np.float32]:
    """``wave`` played at ``factor`` of its speed: pitch and formants fall with it."""
    if factor == 1:
        return wave
    import torchaudio

    longer = torchaudio.functional.resample(torch.from_numpy(wave), factor.numerator, factor.denominator)
    return np.asarray(longer.numpy(), np.float32)
