"""Text in pieces -> speakable text in pieces: sentence ends found, words normalised, nothing said twice.

A whole text is one piece. Every stage looks ahead by the text alone, so the same text gives the same words however it
was cut:

1. :class:`speech_mtp.text.markup.Markup` turns markdown into plain text.
2. :class:`speech_mtp.text.split.SentenceBuffer` hands out words and says which end a sentence.
3. :class:`Segments` gathers words that may be read together ("5" and "km", "Dr." and "Lee").
4. :func:`speech_mtp.text.normalize.normalize` writes each segment out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from speech_mtp.text.joining import CONTEXT, joins, stands_alone
from speech_mtp.text.language import LOOK, check_language
from speech_mtp.text.markup import Markup
from speech_mtp.text.normalize import check_text, normalize
from speech_mtp.text.split import SentenceBuffer, Word

MAX_CHARS = 220
"""Characters of a sentence that is spoken in one go; longer ones are cut."""
MAX_TOTAL = 10_000
"""Characters of a stream."""
MAX_SEGMENT = 24
"""Words that are read together."""


@dataclass(frozen=True)
class Piece:
    """Normalised ``text`` to add to the current sentence (it begins with a space, but for the first); ``end`` closes
    the sentence."""

    text: str
    end: bool


class Segments:
    """Words of sentences -> runs of words that are normalised together.

    A run ends between two words that no rule reads together (:func:`speech_mtp.text.joining.joins`), at the
    end of a sentence, and after ``MAX_SEGMENT`` words. Often the first letter of the next word is enough to tell.
    """

    def __init__(self) -> None:
        self._words: list[str] = []
        self._before: list[str] = []  # the last words of the sentence, handed out or not

    def push(self, word: Word) -> list[tuple[str, bool]]:
        """The runs that are complete now, each with whether it ends a sentence."""
        found = []
        if self._words and (len(self._words) == MAX_SEGMENT or not joins(self._before, word.text)):
            found.append((" ".join(self._words), False))
            self._words = []
        self._words.append(word.text)
        self._before = [*self._before[1 - CONTEXT :], word.text]
        if word.last:
            found.append((" ".join(self._words), True))
            self._words, self._before = [], []
        elif stands_alone(self._before, word.following):
            found.append((" ".join(self._words), False))
            self._words = []
        return found


class Feed:
    """Raw text in, :class:`Piece` out. ``max_total`` limits the characters of the whole stream."""

    def __init__(self, max_chars: int = MAX_CHARS, max_total: int = MAX_TOTAL) -> None:
        self.max_total = max_total
        self._markup = Markup()
        self._buffer = SentenceBuffer(max_chars)
        self._segments = Segments()
        self._beginning: str | None = ""  # by which the language is told; None when it was
        self._seen = 0
        self._begun = False  # whether something of the current sentence was handed out

    def push(self, text: str) -> list[Piece]:
        """Add ``text`` (cut anywhere); the pieces that are sure now. Raises ValueError for what cannot be spoken."""
        self._seen += len(text)
        if self._seen > self.max_total:
            raise ValueError(f"The text stream is longer than {self.max_total} characters; speak it in parts.")
        return self._pieces(self._buffer.push(self._plain(self._markup.push(text), final=False)))

    def finish(self) -> list[Piece]:
        """The text ends here: the remaining pieces."""
        rest = self._plain(self._markup.flush(), final=True)
        return self._pieces(self._buffer.push(rest) + self._buffer.flush())

    def _plain(self, text: str, final: bool) -> str:
        """``text`` without its markup, of which the beginning of the stream must be English."""
        if self._beginning is not None:
            self._beginning += text
            if final or len(self._beginning) >= LOOK:
                check_language(self._beginning)
                self._beginning = None
        return text

    def _pieces(self, words: list[Word]) -> list[Piece]:
        return [self._piece(*segment) for word in words for segment in self._segments.push(word)]

    def _piece(self, segment: str, end: bool) -> Piece:
        text = normalize(segment) if any(c.isalnum() for c in segment) else ""
        text = " " + text if self._begun and text else text
        self._begun = not end and (self._begun or bool(text))
        return Piece(text, end)


def pieces_of(texts: Iterable[str], max_chars: int = MAX_CHARS, max_total: int = MAX_TOTAL) -> Iterator[list[Piece]]:
    """For each text of a stream the pieces that it makes sure, and at last those that its end does."""
    feed = Feed(max_chars, max_total)
    for text in texts:
        yield feed.push(text)
    yield feed.finish()


def joined(gained: Iterable[list[Piece]]) -> Iterator[str]:
    """The sentences that pieces form, each as soon as its end has come."""
    sentence = ""
    for pieces in gained:
        for piece in pieces:
            sentence += piece.text
            if piece.end:
                if sentence:
                    yield sentence
                sentence = ""


def sentences(text: str, max_chars: int = MAX_CHARS) -> list[str]:
    """A whole text -> its normalised sentences. Raises ValueError for text that cannot be spoken."""
    check_text(text)
    return list(joined(pieces_of([text], max_chars, len(text))))
