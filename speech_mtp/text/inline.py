"""Phonemes written in the text: ``[Kokoro](/kˈOkəɹO/)``, the form of misaki and Kokoro.

The form is one token without white space in all of the package: a space in the word is a hyphen, one in the
phonemes an underscore. Only a target that holds a stress mark or a phoneme outside ASCII is read as phonemes, so
that the link ``[help](/help/)`` stays a link. Digits, marks, hyphens and the endings "s" and "'s" may stand beside a
form ("pre-[Kokoro](/kˈOkəɹO/)'s"); a form that is a part of a word is refused ("re[do](/dˈu/)ing").
"""

from __future__ import annotations

import re

from speech_mtp.text.phonemes import ALIASES, BLANK, ID, PAUSES, STRESS

FORM = re.compile(r"\[([^\W\d_]{1,60}(?:['’-][^\W\d_]{1,60}){0,8})\]\(/([^/()\[\]\s]{1,200})/\)")
"""A written form: its word and its phonemes."""


def check(word: str, phonemes: str) -> None:
    """Raise ValueError for a target that is meant as phonemes, as it holds a stress mark, and cannot be read."""
    if not any(c in STRESS for c in phonemes) or is_phonemes(phonemes):
        return
    unknown = next((c for c in phonemes if c not in " _" and c not in STRESS and ALIASES.get(c, c) not in ID), None)
    reason = f"{unknown!r} is none (speech_mtp.text.phonemes has the alphabet)" if unknown else "there is no sound"
    raise ValueError(f"The phonemes /{phonemes}/ of {word!r} cannot be read: {reason}.")


def check_neighbours(text: str) -> None:
    """Raise ValueError for a form that is only a part of a word: the rest would have no reading."""
    for form in FORM.finditer(text) if "](/" in text else ():
        before, after = text[max(0, form.start() - 1) : form.start()], text[form.end() : form.end() + 2]
        if before.isalpha() or (after[:1].isalpha() and (after[0] != "s" or after[1:].isalnum())):
            reason = "write the whole word in the brackets, and its phonemes between the slashes"
            raise ValueError(f"The phonemes of {form[1]!r} stand inside a word; {reason}.")


def is_phonemes(text: str) -> bool:
    """Whether ``text`` can only be phonemes: all of it in the alphabet, and not all of it ASCII letters."""
    known = all(c in " _" or c in STRESS or (ALIASES.get(c, c) in ID and ALIASES.get(c, c) not in PAUSES) for c in text)
    sounds = any(ALIASES.get(c, c) in ID and c != BLANK for c in text)
    return known and sounds and not text.isascii()


def token(word: str, phonemes: str) -> str:
    """The form of ``word`` as one token; an empty string if the two are no form."""
    check(word, phonemes)
    made = f"[{'-'.join(word.split())}](/{BLANK.join(phonemes.split())}/)"
    found = FORM.fullmatch(made)
    return made if found and is_phonemes(found[2]) else ""


def written(text: str) -> str:
    """``text`` with every form replaced by its word."""
    return FORM.sub(lambda m: m[1], text) if "](/" in text else text


def places(text: str) -> list[int]:
    """Where each character of ``written(text)`` stands in ``text``, and the end of ``text`` at last."""
    found, last = [], 0
    for form in FORM.finditer(text) if "](/" in text else ():
        found += [*range(last, form.start()), *range(*form.span(1))]
        last = form.end()
    return [*found, *range(last, len(text) + 1)]
