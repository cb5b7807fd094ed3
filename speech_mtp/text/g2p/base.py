"""The interface of a grapheme-to-phoneme front end."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator

from speech_mtp.text.phonemes import Unit

WORD = re.compile(r"\S+")
FOLLOWING = 2
"""Words after a word that its reading may depend on: measured in ``recipes/tiny_en/RESULTS.md``."""


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


def read_words(g2p: G2P, text: str, words: list[tuple[int, int]], first: int, complete: bool) -> Iterator[list[Unit]]:
    """The units of the ``words`` of ``text`` from number ``first`` on, as far as their context is there.

    A word is read in the text up to the end of the second word after it::

        the quick brown fox jumps over
            ^^^^^           |            read in "the quick brown fox"
    """
    known, units = -1, []
    for i in range(first, len(words) if complete else len(words) - FOLLOWING):
        last = min(i + FOLLOWING, len(words) - 1)
        if last != known:
            known, units = last, g2p.phonemize(text[: words[last][1]])
        end = words[i + 1][0] if i + 1 < len(words) else len(text)
        yield [unit for unit in units if words[i][0] <= unit.char_start < end]


def read_text(g2p: G2P, text: str) -> list[Unit]:
    """The units of a whole ``text``, each word read as :func:`read_words` reads it."""
    words = [word.span() for word in WORD.finditer(text)]
    return [unit for reading in read_words(g2p, text, words, 0, complete=True) for unit in reading]
