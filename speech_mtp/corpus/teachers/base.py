"""The interface of a teacher: a speech synthesiser that makes training data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 24_000
"""Hz of every utterance that a teacher returns."""


@dataclass(frozen=True)
class Utterance:
    """What a teacher said: ``wave [S]`` float32 at 24 kHz, and what it knows about it.

    ``f0_hz [F]`` is the pitch that the teacher itself used, 0 where unvoiced, at ``f0_rate_hz`` frames per
    second from the first sample on; ``phonemes`` the string that it read, in the alphabet of
    :mod:`speech_mtp.text.phonemes`; ``ends_s`` where each character of that string ends, in seconds. Each is None for
    teachers that do not tell.
    """

    wave: NDArray[np.float32]
    f0_hz: NDArray[np.float32] | None = None
    f0_rate_hz: float | None = None
    phonemes: str | None = None
    ends_s: NDArray[np.float64] | None = None


class Teacher(ABC):
    """One synthesiser with one or more voices. Construction finds its files, the first sentence loads them.

    ``licence`` is the licence of the model that speaks, for the card of whatever is trained on its voice.
    """

    name: str
    voices: tuple[str, ...]
    licence: str

    @abstractmethod
    def synthesize(self, text: str, voice: str, seed: int) -> Utterance:
        """Speak ``text`` with one of ``voices``.

        ``seed`` fixes the noise as far as the synthesiser allows. Raises ``ValueError`` for an unknown voice and
        for text without anything to say.
        """

    def check_voice(self, voice: str) -> None:
        """Raise ``ValueError`` unless ``voice`` is one of this teacher's."""
        if voice not in self.voices:
            raise ValueError(f"The teacher {self.name} has no voice {voice!r}; it has {', '.join(self.voices)}.")

    def check(self, text: str, voice: str) -> None:
        """Raise ``ValueError`` for a voice that this teacher lacks, and for ``text`` without a letter or digit."""
        self.check_voice(voice)
        if not any(character.isalnum() for character in text):
            raise ValueError(f"There is nothing to say in {text!r}.")
