"""Which neighbours the normaliser may read together, so that a sentence can be cut between all others.

A rule looks beyond one word only where that word is not plain ("5", "Dr.", "(so)"), or is listed here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from speech_mtp.text import measures, tables

CONTEXT = 3
"""How many words before a word matter."""
PLAIN_WORD = re.compile(r"[\"“”]?[A-Za-z]+(?:['’][A-Za-z]+)*(?:-[a-z]{2,40})*[,;:!?]?[\"“”]?")
MARKS = ',;:!?"“”'
SMALL_LETTERS = frozenset("abcdefghijklmopqrstuwxyz")
NEVER_ALONE = frozenset((*tables.TITLES, "dot"))
"""Words that a rule reads with an abbreviation after them: "St. a.k.a.", "dot co."."""
NUMERAL = re.compile("[IVXLC]+")
NUMBERED = frozenset(re.findall(r"\w+", f"{tables.ROMAN_AFTER}|{tables.MONARCHS}"))
"""Words that a Roman numeral may follow, with a name between."""
MONTHS = frozenset((*tables.MONTHS, *(name[:3] for name in tables.MONTHS), "Sept"))
AFTER_NUMBER = frozenset((*measures.MAGNITUDES, *measures.UNITS, "sq", "cu", "to"))
"""Between a number and what else is read with it: "5 sq ft", "a $5 million house", "3 x 10 to the sixth"."""


def joins(before: Sequence[str], word: str) -> bool:
    """Whether ``word`` may be read together with the words ``before`` it, of which the last ``CONTEXT`` matter.

    Where it is not, the parts of a sentence can be read by themselves.
    """
    if not (is_plain(before[-1]) and is_plain(word)):
        return True
    this = word.strip(MARKS)
    first, earlier, last = ["", "", *(w.strip(MARKS) for w in before[-CONTEXT:])][-CONTEXT:]
    return (
        last in tables.WEEKDAYS
        or this in tables.WEEKDAYS
        or (last in tables.TITLES and this[0].isupper())
        or (last == "of" and this in MONTHS)
        or (last in AFTER_NUMBER and any(c.isdigit() for c in earlier))
        or _in_capitals(last, this)
        or _numbered(first, earlier, last, this)
    )


def stands_alone(words: Sequence[str], following: str) -> bool:
    """Whether the last of ``words`` is read without the next word, of which only the first character is known.

    No rule looks back from a word that begins with a small letter, but for "v.", "n'".
    """
    last = words[-1]
    return following in SMALL_LETTERS and last not in NEVER_ALONE and is_plain(last) and not joins(words, following)


def is_plain(word: str) -> bool:
    """Whether ``word`` is letters and a mark, which are read as they stand unless a neighbour is listed."""
    return PLAIN_WORD.fullmatch(word) is not None


def _in_capitals(last: str, this: str) -> bool:
    """ "Austin, TX", "World II" and "STOP THAT"."""
    return last[0].isupper() and this.isupper() and (len(this) > 1 or (last.isupper() and len(last) > 1))


def _numbered(first: str, earlier: str, last: str, this: str) -> bool:
    """ "Chapter V", "Henry Tudor I", and what follows such an "I", which may be the pronoun."""
    if last in NUMBERED:
        return this[0].isupper()
    if last == "I" and (earlier in NUMBERED or (first in NUMBERED and earlier[:1].isupper())):
        return True
    return earlier in NUMBERED and last[0].isupper() and bool(NUMERAL.fullmatch(this))
