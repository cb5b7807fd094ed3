"""Numbers, letters and Roman numerals that open the items of a list."""

from __future__ import annotations

import re
from dataclasses import dataclass

MARKER = r"(\d{1,3}|[A-Za-z]|[ivx]{2,5}|[IVX]{2,5})"
NUMBERED = re.compile(rf"(?:\((?=[A-Za-z]{{1,5}}\)))?{MARKER}([.)])[ \t]+(?=\S)")
PARTLY_NUMBERED = re.compile(rf"\(|\(?{MARKER}(?:[.)][ \t]*\S?)?")
SPACED_ABBREVIATION = re.compile(r"[a-z]\.[ \t]+[a-z]\.")
ROMAN = re.compile(r"x{0,3}(?:ix|iv|v?i{0,3})")
AHEAD = 200
"""How many characters are waited for to see the second item, where the first could be an initial."""
FIRST = ("A", "I", "a", "i", "1")
"""Markers of the first item of a list inside another."""
DEPTH = 8
"""Lists inside lists that are followed."""


@dataclass(frozen=True)
class Item:
    """``size`` characters open an item and are read as ``spoken``; ``open_markers`` are the last ones of each list."""

    size: int
    spoken: str
    open_markers: tuple[str, ...]


def item(line: str, ahead: str, open_markers: tuple[str, ...], paragraph: bool) -> Item | None:
    """What the beginning of ``line`` says; None if it is no item of a list.

    "A." and "I." could be initials, "IV." the end of a sentence and "p." a page. They are items only beside their like:
    after one of the ``open_markers``, before a second item in the lines ``ahead``, or, for numerals of several letters,
    where a ``paragraph`` begins. All other markers are items by themselves.
    """
    found = NUMBERED.match(line)
    if found is None or SPACED_ABBREVIATION.match(line):
        return None
    marker, mark = found[1], found[2]
    if len(marker) > 1 and not (marker.isdigit() or _is_roman(marker)):
        return None
    if marker.isdigit():
        return Item(found.end(), marker, open_markers)
    depth = next((i for i, m in enumerate(open_markers) if _follows(m, marker)), len(open_markers))
    before = open_markers[depth] if depth < len(open_markers) else ""
    alone = ("a", "i") if len(marker) == 1 or not paragraph else (marker,)
    if mark == "." and not (before or marker in alone or (len(marker) > 1 and marker.islower())):
        second = NUMBERED.match(ahead.lstrip()) if marker in ("A", "I") else None
        if not (second and (_follows(marker, second[1]) or (second[1] in FIRST and second[1] != marker))):
            return None
    return Item(found.end(), _spoken(marker, before), (*open_markers[:depth], marker)[-DEPTH:])


def is_undecided(text: str) -> bool:
    """Whether ``text``, which begins with a line, must be longer to tell whether that line is an item."""
    found = NUMBERED.match(text)
    if not (found and found[1] in ("A", "I") and found[2] == "." and len(text) < AHEAD):
        return False
    ahead = text.partition("\n")[2].lstrip()
    return not ahead or PARTLY_NUMBERED.fullmatch(ahead) is not None


def _is_roman(marker: str) -> bool:
    return ROMAN.fullmatch(marker.lower()) is not None


def _value(marker: str) -> int:
    """``"iv"`` -> 4."""
    values = [{"i": 1, "v": 5, "x": 10}[c] for c in marker.lower()]
    return sum(-v if v < max(values[i:]) else v for i, v in enumerate(values))


def _follows(before: str, marker: str) -> bool:
    """Whether ``marker`` is the letter or the numeral after ``before``."""
    if before.isupper() != marker.isupper():
        return False
    letters = len(before) == len(marker) == 1 and ord(marker) == ord(before) + 1
    return letters or (_is_roman(before) and _is_roman(marker) and _value(marker) == _value(before) + 1)


def _spoken(marker: str, before: str) -> str:
    """Numerals become numbers. Letters become capitals: "a" alone would be read as the article."""
    letter_after = len(before) == 1 and len(marker) == 1 and ord(marker) == ord(before) + 1
    numeral = _is_roman(marker) and not letter_after and (before or marker not in "VXvx")
    return str(_value(marker)) if numeral else marker.upper()
