"""The phoneme inventory shared by G2P front ends, aligners, codecs and language models.

The alphabet is the American English one of misaki and Kokoro: one character per phoneme, with capitals
for diphthongs (``A I O W Y``), ``T`` for the flapped t, ``ʤ ʧ`` for the affricates, ``ᵊ ᵻ`` for the
reduced vowels. Stress marks and spaces are not symbols: they become the ``stress`` and ``word_start`` of
a :class:`Unit`. Punctuation is heard as a pause or a melody, so it has symbols: one for every kind of
short pause, and one each for the ends of statements, questions and exclamations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

BLANK = "_"
VOWELS = "AIOWYiuæɐɑɔəɛɜɪʊʌᵊᵻ"
CONSONANTS = "Tbdfhjklmnpstvwzðŋɡɹʃʒʤʧθ"
PAUSES = (",", ".", "!", "?")
"""Pause symbols, weakest first: of several marks in a row the strongest is kept."""

SYMBOLS: tuple[str, ...] = (BLANK, *VOWELS, *CONSONANTS, *PAUSES)
"""Every symbol; index 0 is the blank of CTC and the padding of batches."""

ID: dict[str, int] = {symbol: index for index, symbol in enumerate(SYMBOLS)}

STRESS = {"ˈ": 1, "ˌ": 2}
ALIASES = {
    **dict.fromkeys(";:-–—", ","),
    "…": ".",
    "ɾ": "T",
    "ʔ": "t",
    "g": "ɡ",
    "r": "ɹ",
    "a": "ɑ",
    "ɒ": "ɑ",
    "Q": "O",
    "e": "ɛ",
    "y": "u",
    "ʀ": "ɹ",
}
"""Characters that other dictionaries of the same family write, and the symbol that stands for them."""

SILENT = frozenset("\"“”'‘’()«»ː")
"""Characters of a phoneme string that are neither spoken nor a pause."""


@dataclass(frozen=True)
class Unit:
    """One phoneme or pause of a text.

    ``stress`` is 0 (none), 1 (primary) or 2 (secondary) and sits on vowels. ``word_start`` is True for the
    first phoneme of each spoken word (never for a pause; one written word such as "and/or" may start two).
    ``char_start:char_end`` is the written word, or the punctuation, in the text that was phonemized.
    """

    phoneme: str
    stress: int
    word_start: bool
    char_start: int
    char_end: int

    @property
    def id(self) -> int:
        """Index of the phoneme in ``SYMBOLS``."""
        return ID[self.phoneme]

    @property
    def is_pause(self) -> bool:
        return self.phoneme in PAUSES


def parse(phonemes: str, char_start: int = 0, char_end: int = 0) -> list[Unit]:
    """A phoneme string such as ``"həlˈO, wˈɜɹld!"`` -> its units, all with the span ``char_start:char_end``.

    A space or a pause ends a word; a stress mark belongs to the next vowel of its word. The caller, who knows
    which written word the string reads, gives the span. Raises ValueError for a character outside the alphabet.
    """
    units: list[Unit] = []
    stress, word_start = 0, True
    for char in phonemes:
        symbol = ALIASES.get(char, char)
        if char == " " or symbol in PAUSES:
            stress, word_start = 0, True
            if symbol in PAUSES:
                units.append(Unit(symbol, 0, False, char_start, char_end))
        elif char in STRESS:
            stress = STRESS[char]
        elif symbol in ID and symbol != BLANK:
            vowel = symbol in VOWELS
            units.append(Unit(symbol, stress if vowel else 0, word_start, char_start, char_end))
            stress, word_start = (0 if vowel else stress), False
        elif char not in SILENT:
            raise ValueError(f"{char!r} in {phonemes!r} is no phoneme of the inventory (speech_mtp.text.phonemes).")
    return units


def merge_pauses(units: Iterable[Unit]) -> list[Unit]:
    """One pause, the strongest, for every run of pauses; none before the first phoneme."""
    merged: list[Unit] = []
    for unit in units:
        if not unit.is_pause:
            merged.append(unit)
        elif merged and merged[-1].is_pause:
            strongest = max(merged[-1].phoneme, unit.phoneme, key=PAUSES.index)
            merged[-1] = replace(merged[-1], phoneme=strongest, char_end=max(merged[-1].char_end, unit.char_end))
        elif merged:
            merged.append(unit)
    return merged


def render(units: Iterable[Unit]) -> str:
    """Units -> the phoneme string that :func:`parse` reads back: ``"həlˈO, wˈɜɹld!"``."""
    marks = {value: mark for mark, value in STRESS.items()}
    parts: list[str] = []
    for unit in units:
        space = " " if unit.word_start and parts else ""
        parts.append(space + marks.get(unit.stress, "") + unit.phoneme)
    return "".join(parts)
