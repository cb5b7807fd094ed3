"""The interface of a grapheme-to-phoneme front end."""

from __future__ import annotations

from abc import ABC, abstractmethod

from speech_mtp.text.phonemes import Unit


class G2P(ABC):
    """Turns normalised text (``speech_mtp.text.normalize``) into phoneme units.

    ``name`` identifies the alphabet and the readings: models trained on one front end say so in their
    card. An instance is safe to share; it keeps nothing between calls.
    """

    name: str

    @abstractmethod
    def phonemize(self, text: str) -> list[Unit]:
        """The units of ``text`` in order, each with the span of its word in ``text``.

        No written word is lost: each one that holds a letter or digit has at least one unit, and the spans
        never go backwards. Text without words gives an empty list. Raises ValueError, naming the word, when
        no reading can be found for it.
        """
