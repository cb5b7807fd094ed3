"""Text in pieces -> speakable text in pieces: sentence ends found, words normalised, nothing said twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import takewhile

from speech_mtp.text.normalize import check_text, normalize
from speech_mtp.text.split import SentenceBuffer, split_sentences


@dataclass(frozen=True)
class Piece:
    """Normalised ``text`` to add to the current sentence (it carries its own spaces); ``end`` closes the sentence."""

    text: str
    end: bool


def sentences(text: str, max_chars: int = 220) -> list[str]:
    """A whole text -> its normalised sentences. Raises ValueError for text that cannot be spoken."""
    check_text(text)
    return [normalize(sentence) for sentence in split_sentences(text, max_chars)]


def arriving_sentences(texts: Iterable[str], max_chars: int = 220, max_total: int = 10_000) -> Iterator[str]:
    """The :func:`sentences` of a text that comes in pieces cut anywhere, each as soon as its end has been seen."""
    buffer = SentenceBuffer(max_chars)
    for text in _limited(texts, max_total):
        yield from map(normalize, buffer.push(text))
    yield from map(normalize, buffer.flush())


def _limited(texts: Iterable[str], max_total: int) -> Iterator[str]:
    """``texts``, and ValueError when they are longer together than ``max_total`` characters."""
    seen = 0
    for text in texts:
        seen += len(text)
        if seen > max_total:
            raise ValueError(f"The text stream is longer than {max_total} characters; speak it in parts.")
        yield text


class Feed:
    """Pieces of raw text in, :class:`Piece` out.

    The last ``hold`` words of an unfinished sentence are held back, because a number or an abbreviation is read
    together with its neighbours ("5" and "km"). A sentence longer than ``max_chars`` is closed at a clause end.
    """

    def __init__(self, hold: int = 3, max_chars: int = 220, max_total: int = 10_000) -> None:
        self.hold, self.max_chars, self.max_total = hold, max_chars, max_total
        self._buffer = SentenceBuffer(max_chars=max_total)
        self._taken = 0  # raw words of the buffer's sentence that belong to closed sentences
        self._said = ""  # normalised text handed out for the current sentence

    def pieces(self, texts: Iterable[str]) -> Iterator[Piece | None]:
        """Every piece as soon as it is sure; None after each input text, when there is nothing more for now."""
        for text in _limited(texts, self.max_total):
            for sentence in self._buffer.push(text):
                yield from self._close(sentence.split(" ")[self._taken :])
                self._taken = 0
            yield from self._partial()
            yield None
        for sentence in self._buffer.flush():
            yield from self._close(sentence.split(" ")[self._taken :])
            self._taken = 0

    def _partial(self) -> Iterator[Piece]:
        words = self._buffer.pending[self._taken :]
        sure = words[: -self.hold]
        if not any(c.isalnum() for w in sure for c in w):
            return
        whole = normalize(" ".join(sure))
        text = _common_words(whole, normalize(" ".join(words)))  # "Dr." alone reads as "Drive", before a name not
        if not text.startswith(self._said):
            return
        piece, self._said = text[len(self._said) :], text
        long = (len(text) > self.max_chars and sure[-1][-1] in ",;:") or len(text) > 2 * self.max_chars
        if long and text == whole:
            self._taken += len(sure)
            self._said = ""
            yield Piece(piece, end=True)
        elif piece:
            yield Piece(piece, end=False)

    def _close(self, words: list[str]) -> Iterator[Piece]:
        said, self._said = self._said, ""
        if not any(c.isalnum() for w in words for c in w):
            if said:
                yield Piece("", end=True)
            return
        text = normalize(" ".join(words))
        if not text.startswith(said):  # the end changed how the beginning reads: say what follows the words said
            text = said + " " + " ".join(text.split(" ")[len(said.split(" ")) :])
        yield Piece(text[len(said) :], end=True)


def _common_words(first: str, second: str) -> str:
    """The words that both texts begin with."""
    pairs = zip(first.split(" "), second.split(" "), strict=False)
    return " ".join(a for a, _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
