"""One answer of a chat on its way to one client: the engine's thread writes it and gives it to the talker, pieces of
text come to the loop."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from speech_mtp.serving.arrivals import Arrivals, merged
from speech_mtp.serving.engine import Engine
from speech_mtp.serving.errors import ApiError, EngineFailedError
from speech_mtp.serving.speaking import Speaking
from speech_mtp.streaming.authors import Author, AuthorError, Outcome, Question, Writing
from speech_mtp.streaming.reply import has_words
from speech_mtp.streaming.scheduler import Scheduler
from speech_mtp.streaming.stream import Chunk


class Answering(Arrivals[str]):
    """Iterate over the pieces of text; over :attr:`speaking` for its sound. Leaving ``async with`` cancels both.

    Iterating raises AuthorError when the author fails. Methods without an underscore belong to the loop, but for those
    of :class:`speech_mtp.serving.engine.Job`. ``outcome`` is known at the end.
    """

    def __init__(
        self,
        engine: Engine,
        author: Author,
        question: Question,
        speaking: Speaking | None,
        ended: Callable[[Answering], None],
    ) -> None:
        super().__init__()
        self.question, self.speaking = question, speaking
        self.outcome: Outcome | None = None
        self.began, self.ended_s = time.monotonic(), 0.0
        self.first_text_s: float | None = None
        self._steps: list[list[str]] = []
        self._engine, self._author, self._ended = engine, author, ended
        # The engine's side.
        self._writing: Writing | None = None
        self._over = False
        engine.do(self._open)
        engine.add(self)

    # -- the loop's side ------------------------------------------------------------------------------------------
    def cancel(self, error: Exception | None = None) -> None:
        """Write and say no more; the engine makes at most the step that is running. ``error``: what whoever reads is
        told."""
        if self.speaking is not None:
            self.speaking.cancel(error)
        if not self._done:
            self._engine.do(lambda _: self._close())
            self._finished(error)

    def take_steps(self) -> list[list[str]]:
        """The tokens that each forward of the language model has made sure since the last call."""
        steps, self._steps = self._steps, []
        return steps

    async def pieces(self) -> AsyncIterator[str | Chunk]:
        """Text and sound as they come, text first; an answer without a word has no sound. Raises what broke it off:
        AuthorError, and ApiError 422 behind the whole text when that cannot be spoken."""
        sources: list[AsyncIterator[Any]] = [aiter(self)]
        if self.speaking is not None:
            sources.append(aiter(self.speaking))
        text = ""
        async for piece in merged(sources):
            if isinstance(piece, Exception):
                if not isinstance(piece, ValueError):
                    raise piece
                if has_words(text):
                    message = f"The answer was written, but cannot be spoken: {piece}"
                    raise ApiError(422, message, "modalities", "answer_not_speakable")
                continue
            if isinstance(piece, str):
                text += piece
            yield piece

    async def begun(self) -> None:
        """Wait for the first text, or the end. Raises what kept it from being written."""
        await self._until(lambda piece: True)

    def _arrive(
        self, pieces: list[str], steps: list[list[str]], error: Exception | None, outcome: Outcome | None
    ) -> None:
        if self._done:
            return
        self._steps += steps
        if pieces and self.first_text_s is None:
            self.first_text_s = time.monotonic() - self.began
        self._receive(pieces)
        self.outcome = outcome
        if error is not None or outcome is not None:
            self._finished(error)

    def _finished(self, error: Exception | None) -> None:
        self._end(error)
        self.ended_s = time.monotonic() - self.began
        self._ended(self)

    # -- the engine's side ----------------------------------------------------------------------------------------
    def _open(self, scheduler: Scheduler) -> None:
        try:
            self._writing = self._author.write(scheduler, self.question, self._wake)
        except ValueError as error:
            self._tell([], error, None)

    def _wake(self) -> None:
        """Something was written that no tick has made."""
        self._engine.do(lambda _: None)

    def _close(self) -> None:
        if self._writing is not None:
            self._writing.close()
        self._over = True

    def pump(self, now: float) -> bool:
        writing = self._writing
        if self._over or writing is None:
            return False
        goes_on = writing.writing  # asked first: what was written before is taken
        try:
            pieces = writing.take()
        except AuthorError as error:
            writing.close()
            if self.speaking is not None:
                self.speaking.hear(None)
            self._tell([], error, None)
            return True
        if self.speaking is not None:
            for piece in pieces:
                self.speaking.hear(piece)
        if goes_on:
            if pieces:
                self._tell(pieces, None, None)
            return bool(pieces)
        outcome = writing.close()
        if outcome.finish.reason == "cancelled":  # not by its client, so the engine has ended
            self._tell(pieces, EngineFailedError("The engine has ended."), None)
            return True
        if self.speaking is not None:
            self.speaking.hear(None)
        self._tell(pieces, None, outcome)
        return True

    def _tell(self, pieces: list[str], error: Exception | None, outcome: Outcome | None) -> None:
        self._over = self._over or error is not None or outcome is not None
        if not self._loop.is_closed():
            steps = self._writing.take_steps() if self._writing is not None else []
            self._loop.call_soon_threadsafe(self._arrive, pieces, steps, error, outcome)

    def over(self) -> bool:
        return self._over

    def wakes_in(self, now: float) -> float | None:
        return None

    def fail(self, error: Exception) -> None:
        self._tell([], EngineFailedError(str(error)), None)
