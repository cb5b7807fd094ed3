"""Readings of the user's own: a file of words, and phonemes written in the text (:mod:`speech_mtp.text.inline`).

A line of the file is ``word TAB reading``; empty lines and lines that begin with ``#`` are left out. A reading is
phonemes of :mod:`speech_mtp.text.phonemes` (``kˈOkəɹO``; between slashes always), or a respelling in English words
of ASCII letters and spaces only (``koh kuh roh``). A word matches however it is capitalised, unless it is written
with capitals inside ("SQL", "McCoy"); its plural, its possessive and its short forms ("Nguyen'll") match too.
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
ENDINGS = {"'s": "", "s": "", "es": "", "'ll": "əl", "'d": "d", "'ve": "əv", "'re": "əɹ"}
"""Endings of a word and their phonemes; an empty string is the "s" of plurals, which depends on the word."""
MIN_STEM = 3
"""Letters of a word that may have a plural: an entry for "hi" does not match "his"."""


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
        forms = list(inline.FORM.finditer(text)) if "](/" in text else []
        units = self.g2p.phonemize(shown)
        for start, end, parts in self._overrides(shown, _places_of(forms)):
            new: list[Unit] = []
            for part in filter(None, parts):
                new += self._read(part, new)
            units = _put(units, [replace(u, char_start=start, char_end=end) for u in new], start, end)
        spans = _Spans(places, forms)
        return [spans.placed(unit) for unit in units]

    def _overrides(self, shown: str, forms: dict[int, tuple[int, str]]) -> Iterator[tuple[int, int, list[str]]]:
        """From where to where ``shown`` is read otherwise, and the parts of that; forms come before entries."""
        for found in WORD.finditer(shown):
            start, end = found.span()
            parts, at = [], start
            for begin in (i for i in range(start, end) if i in forms) if forms else ():
                parts += [shown[at:begin].strip("-"), forms[begin][1]]
                at = forms[begin][0]
            parts = [*parts, shown[at:end].strip("-")] if parts else self._entry(found.group())
            if parts:
                yield start, end, parts

    def _entry(self, word: str) -> list[str]:
        """The reading of a ``word`` that the lexicon has, and its ending; nothing for other words."""
        for ending in ("", *ENDINGS):
            bare = word[: len(word) - len(ending)]
            short = "'" not in ending and len(bare) < MIN_STEM and not bare.isupper()
            if word.lower().endswith(ending) and not (ending and short):
                reading = self._entries.get(bare, self._entries.get(bare.lower()))
                if reading:
                    return [reading, ending]
        return []

    def _read(self, part: str, before: list[Unit]) -> list[Unit]:
        """Phonemes between slashes, the ending of the word ``before``, or English."""
        if part.startswith("/"):
            return parse(part.strip("/"))
        if before and part.lower() in ENDINGS:
            return _ending(part.lower(), before[-1])
        return [unit for unit in self.g2p.phonemize(part) if not unit.is_pause]


def _ending(ending: str, last: Unit) -> list[Unit]:
    """What an ending adds after the phoneme ``last``: those of "Ross's", "Pat's" and "Ann's" differ."""
    plural = "ᵻz" if last.phoneme in "szʃʒʧʤ" else "s" if last.phoneme in "ptkfθ" else "z"
    sounds = ENDINGS[ending] or plural
    return [replace(last, phoneme=sound, stress=0, word_start=False) for sound in sounds]


def _places_of(forms: list[re.Match[str]]) -> dict[int, tuple[int, str]]:
    """For the word of each form where it begins in the text without forms: where it ends, and its phonemes."""
    found, removed = {}, 0
    for form in forms:
        start = form.start() - removed
        found[start] = (start + len(form[1]), f"/{form[2].replace('_', ' ')}/")
        removed += len(form[0]) - len(form[1])
    return found


class _Spans:
    """Spans of words without written phonemes -> those in the text with them.

    A form alone is its word; a form with more around it is all of it, so that ``inline.written`` can read the span.
    """

    def __init__(self, places: list[int], forms: list[re.Match[str]]) -> None:
        self._places = places
        self._opening = {form.start(1): form for form in forms}
        self._closing = {form.end(1): form for form in forms}

    def placed(self, unit: Unit) -> Unit:
        start, end = self._places[unit.char_start], self._places[unit.char_end - 1] + 1
        first, last = self._opening.get(start), self._closing.get(end)
        if first is not last:
            start, end = first.start() if first else start, last.end() if last else end
        return replace(unit, char_start=start, char_end=end)


def _put(units: list[Unit], new: list[Unit], start: int, end: int) -> list[Unit]:
    """``units`` with those of the word ``start:end`` replaced by ``new``."""
    kept = [u for u in units if u.is_pause or u.char_end <= start or u.char_start >= end]
    at = next((i for i, u in enumerate(kept) if u.char_start >= end), len(kept))
    return merge_pauses([*kept[:at], *new, *kept[at:]])
