"""A chat's answer, written and spoken at once on one scheduler: text first, never held up by its speech.

The talker reads the words that were written, through its own backbone, as it reads any text that comes in pieces; the
hidden states of the language model that wrote them are not used. Markup is not spoken
(:class:`speech_mtp.text.markup.Markup`), and numbers are written out.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from speech_mtp.lm.chat import Message
from speech_mtp.streaming.authors import Author, Outcome, Question, Wish, Writing
from speech_mtp.streaming.scheduler import Scheduler
from speech_mtp.streaming.stream import RAMP, Chunk, Ramp
from speech_mtp.types import Sampling

NAP_S = 0.01
MAX_CHARS = 2**20
"""Characters of a spoken answer: as many as an author writes."""


def reply(
    scheduler: Scheduler,
    author: Author,
    messages: Sequence[Message],
    voice: str | None = None,
    wish: Wish | None = None,
    sampling: Sampling | None = None,
    ramp: Ramp = RAMP,
) -> Reply:
    """The answer of ``author`` to the last of ``messages``, spoken by ``scheduler``. Iterate over it.

    Raises ValueError for an unknown voice, and for a message that does not fit into the model's context.
    """
    return Reply(scheduler, author, messages, voice, wish or Wish(), sampling, ramp)


class Reply:
    """Yields pieces of text and :class:`Chunk` of sound as they are made; the text of a tick before its sound.

    ``dropped`` oldest messages of the history were not read, because they did not fit. ``first_text_s`` and
    ``first_audio_s`` count from the request. ``speech_error`` says why an answer was not spoken to its end: it is
    written on. Leaving the loop cancels both.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        author: Author,
        messages: Sequence[Message],
        voice: str | None,
        wish: Wish,
        sampling: Sampling | None,
        ramp: Ramp,
    ) -> None:
        self._scheduler, self._began = scheduler, scheduler.clock()
        self._news = threading.Event()
        self.question: Question = author.prepare(messages, wish)
        self.dropped = self.question.dropped
        self.stream = scheduler.speak(voice, sampling, ramp, max_total=MAX_CHARS)
        self.stream.is_reply = True
        self._writing: Writing = author.write(scheduler, self.question, self._news.set)
        self.text = ""
        self.outcome: Outcome | None = None
        self.speech_error: ValueError | None = None
        self.first_text_s: float | None = None
        self.first_audio_s: float | None = None

    def cancel(self) -> None:
        """Write and say no more."""
        self.stream.cancel()
        if self.outcome is None:
            self.outcome = self._writing.close()

    def __iter__(self) -> Iterator[str | Chunk]:
        try:
            while self.outcome is None or not self.stream.done:
                self._news.clear()
                worked = self._scheduler.tick()
                for piece in self._write():
                    worked = True
                    yield piece
                yield from self._chunks()
                if not worked:  # it is far enough ahead, or an author that does not write in ticks has written nothing
                    self._news.wait(NAP_S)
            yield from self._chunks()
        finally:
            self.cancel()

    def _write(self) -> Iterator[str]:
        """What was written since, on its way to whoever reads, after it was given to the talker."""
        if self.outcome is not None:
            return
        writing = self._writing.writing  # asked first: what was written before is taken
        for piece in self._writing.take():
            self.first_text_s = self.first_text_s or self._scheduler.clock() - self._began
            self.text += piece
            self._say(piece)
            yield piece
        if not writing:
            self.outcome = self._writing.close()
            self._say(None)

    def _say(self, piece: str | None) -> None:
        """More text for the talker, or its end; what cannot be spoken ends its speech alone."""
        if self.stream.done:
            return
        try:
            if piece is not None:
                self.stream.push(piece)
            elif has_words(self.text):
                self.stream.finish_text()
            else:
                self.stream.cancel()
        except ValueError as error:
            self.speech_error = error

    def _chunks(self) -> list[Chunk]:
        try:
            chunks = self.stream.take()
        except ValueError as error:
            self.speech_error = error
            return []
        if self.first_audio_s is None and any(len(chunk.wave) for chunk in chunks):
            self.first_audio_s = self._scheduler.clock() - self._began
        return chunks


def has_words(text: str) -> bool:
    """Whether there is anything in ``text`` to say."""
    return any(c.isalnum() for c in text)
