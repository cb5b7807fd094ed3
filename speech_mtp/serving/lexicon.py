"""Readings that a client sends with a text: phonemes are written behind its words (:mod:`speech_mtp.text.inline`)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from speech_mtp.text import inline

MOST = 256
"""Words of one lexicon."""


class Readings:
    """Puts phonemes behind the words of ``entries`` (word -> phonemes), in whatever case they are written.

    Raises ValueError for an entry that cannot be read.
    """

    def __init__(self, entries: Mapping[str, str]) -> None:
        if len(entries) > MOST:
            raise ValueError(f"The lexicon has {len(entries)} words; at most {MOST} can be sent.")
        self._phonemes = {word.casefold(): phonemes.strip().strip("/") for word, phonemes in entries.items()}
        for word, phonemes in self._phonemes.items():
            if not inline.token(word, phonemes):
                raise ValueError(f"The lexicon's entry {word[:60]!r} cannot be used; give a word and its phonemes.")
        words = "|".join(map(re.escape, sorted(self._phonemes, key=len, reverse=True)))
        self._pattern = re.compile(rf"{inline.FORM.pattern}|(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)
        self._held = ""

    def whole(self, text: str) -> str:
        """A whole text; forms that it holds already stay as they are."""
        return self._pattern.sub(self._written, text) if self._phonemes else text

    def _written(self, found: re.Match[str]) -> str:
        phonemes = self._phonemes.get(found[0].casefold())
        return found[0] if phonemes is None else inline.token(found[0], phonemes)

    def push(self, text: str) -> str:
        """A piece of a text, cut anywhere: what is sure now; the last word is held back until white space."""
        text = self._held + text
        cut = max(text.rfind(" "), text.rfind("\n")) + 1
        self._held = text[cut:]
        return self.whole(text[:cut])

    def flush(self) -> str:
        """What was held back."""
        rest, self._held = self._held, ""
        return self.whole(rest)
