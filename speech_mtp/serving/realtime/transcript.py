"""Which words of an answer have been sounded, and when: where its transcript is cut if somebody interrupts."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

from speech_mtp.types import WordTime

FAR = 64
"""Characters within which the next spoken word is looked for: a number that was written out is not found."""


@dataclass(frozen=True)
class SpokenWord:
    """A word as it was spoken, when it sounds in its item's audio, and where it stands in the transcript (None: it is
    not written so there)."""

    text: str
    start_ms: int
    end_ms: int
    start_char: int | None
    end_char: int | None

    def shape(self) -> dict[str, Any]:
        """As it is sent."""
        return asdict(self)


class SpokenTranscript:
    """An answer's text as it is written, and its words as they are spoken; ``complete`` when all of it has been.

    Where speech does not point into its text (not ``timed``), no word has a time, and text is heard at an even pace.
    """

    def __init__(self, timed: bool = True) -> None:
        self.text, self.timed = "", timed
        self.complete = False
        self.words: list[SpokenWord] = []
        self._at = 0

    def say(self, word: WordTime, speed: float) -> SpokenWord:
        """The next word has been sounded, ``speed`` times as fast as its times say."""
        start, end = (round(1000 * s / speed) for s in (word.start_s, word.end_s))
        bare = word.word.strip(".,;:!?\"'()[]*_ ")
        whole_word = re.compile(rf"(?<!\w){re.escape(bare)}(?!\w)", re.IGNORECASE)
        found = whole_word.search(self.text, self._at, self._at + FAR + len(bare)) if bare else None
        place: tuple[int | None, int | None] = (None, None)
        if found is not None:
            place, self._at = found.span(), found.end()
        spoken = SpokenWord(word.word, start, end, *place)
        self.words.append(spoken)
        return spoken

    def until(self, audio_end_ms: float, audio_ms: float) -> str:
        """The text whose words had sounded whole at ``audio_end_ms``, with the marks behind them.

        A word counts as heard when less than a quarter of it is missing. Behind a word that is not written as it was
        spoken the text goes up to the next one that is; where none has been spoken yet, it is one word of the text.
        ``audio_ms``: how long all of its sound is.
        """
        if not self.timed:
            return self.text[: int(len(self.text) * min(1.0, audio_end_ms / max(audio_ms, 1)))].rpartition(" ")[0]
        heard = [w for w in self.words if audio_end_ms >= w.end_ms - (w.end_ms - w.start_ms) / 4]
        if not heard:
            return ""
        if len(heard) == len(self.words) and self.complete:
            return self.text
        after = next((w.start_char for w in self.words[len(heard) :] if w.start_char is not None), None)
        last = next((w.end_char for w in reversed(heard) if w.end_char is not None), 0)
        if heard[-1].end_char is None and after is not None:
            return self.text[:after].rstrip()
        if heard[-1].end_char is None and (written := re.compile(r"\W*\w\S*").match(self.text, last)):
            return self.text[: written.end()]
        return self.text[: self._marks_behind(last)]

    def _marks_behind(self, char: int) -> int:
        while char < len(self.text) and not self.text[char].isspace() and not self.text[char].isalnum():
            char += 1
        return char
