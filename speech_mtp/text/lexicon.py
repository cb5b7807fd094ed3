"""Readings of the user's own: a file of words, and phonemes written in the text (:mod:`speech_mtp.text.inline`).

A line of the file is ``word TAB reading``; empty lines and lines that begin with ``#`` are left out. A reading is
phonemes of :mod:`speech_mtp.text.phonemes` (``kˈOkəɹO``; between slashes always), or a respelling in English words
of ASCII letters and spaces only (``koh kuh roh``). A word matches however it is capitalised, unless it is written
with capitals inside ("SQL", "McCoy"); its possessive matches too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from speech_mtp.text import inline
from speech_mtp.text.g2p.base import G2P
from speech_mtp.text.normalize import normalize
from speech_mtp.text.phonemes import Unit, merge_pauses, parse

WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
RESPELLING = re.compile(r"[A-Za-z]+(?: [A-Za-z]+)*")
Override = tuple[int, int, str]
"""The characters from and to, and what is read there: phonemes between slashes, or a respelling."""


def read_lexicon(path: str | Path) -> dict[str, str]:
    """The words of a file and their readings. Raises ValueError, with the line, for one that cannot be used."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"The lexicon {path} is not text in UTF-8.") from error
    entries: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            word, reading = _entry(line)
        except ValueError as error:
            raise ValueError(f"Line {number} of the lexicon {path} cannot be used: {error}") from error
        if word in entries:
            raise ValueError(f"Line {number} of the lexicon {path} gives {word!r} again; keep one of the two lines.")
        entries[word] = reading
    return entries


def _entry(line: str) -> tuple[str, str]:
    word, _, reading = (part.strip() for part in line.partition("\t"))
    if not word or not reading:
        raise ValueError("write the word, a tab and its reading.")
    plain = normalize(word)
    if not WORD.fullmatch(plain):
        raise ValueError(f"{word!r} is read as {plain!r}; give one line to each word, written in letters.")
    if not RESPELLING.fullmatch(reading):
        reading = f"/{reading.strip('/')}/"
        if all(unit.is_pause for unit in parse(reading.strip("/"))):
            raise ValueError(f"{reading!r} holds no phoneme; write phonemes or a respelling.")
    return _key(plain), reading


def _key(word: str) -> str:
    return word if any(c.isupper() for c in word[1:]) else word.lower()


class Lexicon(G2P):
    """Another front end, with readings of the user's own put in its place, and with phonemes read from the text.

    ``entries`` are those of :func:`read_lexicon`. The other front end reads the text without written phonemes.
    """

    def __init__(self, g2p: G2P, entries: Mapping[str, str] | None = None) -> None:
        self.name = g2p.name
        self.g2p = g2p
        self._entries = dict(entries or {})

    def phonemize(self, text: str) -> list[Unit]:
        shown, places = inline.written(text), inline.places(text)
        units = self.g2p.phonemize(shown)
        for start, end, reading in self._overrides(text, shown, places):
            units = _put(units, self._read(reading, start, end), start, end)
        return [replace(u, char_start=places[u.char_start], char_end=places[u.char_end - 1] + 1) for u in units]

    def _overrides(self, text: str, shown: str, places: list[int]) -> Iterator[Override]:
        """What is read otherwise, in the characters of ``shown``; a written form comes before an entry."""
        forms = {form.start(1): form for form in inline.FORM.finditer(text) if "](/" in text}
        for found in WORD.finditer(shown):
            start, end, word = found.start(), found.end(), found.group()
            form = forms.get(places[start])
            tail = word[-2:].lower() if word[-2:].lower() == "'s" else ""
            bare = word[: len(word) - len(tail)]
            reading = (
                f"/{form[2].replace('_', ' ')}/" if form else self._entries.get(bare, self._entries.get(bare.lower()))
            )
            if reading:
                yield start, end, reading + tail

    def _read(self, reading: str, start: int, end: int) -> list[Unit]:
        owner = reading.endswith("'s")
        reading = reading.removesuffix("'s")
        if reading.startswith("/"):
            units = parse(reading.strip("/"), start, end)
        else:
            found = self.g2p.phonemize(reading)
            units = [replace(u, char_start=start, char_end=end) for u in found if not u.is_pause]
        return units + _possessive(units[-1]) if owner else units


def _possessive(last: Unit) -> list[Unit]:
    """The ending of "Ross's", "Pat's" or "Ann's" after the phoneme ``last``."""
    sounds = "ᵻz" if last.phoneme in "szʃʒʧʤ" else "s" if last.phoneme in "ptkfθ" else "z"
    return [replace(last, phoneme=sound, stress=0, word_start=False) for sound in sounds]


def _put(units: list[Unit], new: list[Unit], start: int, end: int) -> list[Unit]:
    """``units`` with those of the word ``start:end`` replaced by ``new``."""
    kept = [u for u in units if u.is_pause or u.char_end <= start or u.char_start >= end]
    at = next((i for i, u in enumerate(kept) if u.char_start >= end), len(kept))
    return merge_pauses([*kept[:at], *new, *kept[at:]])
