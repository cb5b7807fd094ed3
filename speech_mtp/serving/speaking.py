"""One text on its way to one client: commands go to the engine's thread, chunks of sound come back to the loop.

The client's side is paced: speech is talked on only while less than ``ahead_s`` of it has not been played, and less
than ``backlog_s`` has not been taken. A long text is shown to the engine slice by slice, so that reading it does not
hold up the others.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from math import inf

from torch import Tensor

from speech_mtp.serving.arrivals import Arrivals
from speech_mtp.serving.engine import Engine
from speech_mtp.serving.errors import EngineFailedError
from speech_mtp.streaming.playback import Playback
from speech_mtp.streaming.scheduler import Scheduler
from speech_mtp.streaming.stream import RAMP, Chunk, Ramp, Stream
from speech_mtp.types import Finish, Sampling

SLICE = 256
"""Characters of a text that are read at a time."""
CUSHION_S = 0.08
"""How long players gather sound before they begin: what comes later than that is a gap."""


@dataclass(frozen=True)
class Manner:
    """How somebody wants to be spoken to. ``ahead_s``, seconds of a listener who hears it ``speed``
    times as fast: infinite for a file that is wanted as fast as it goes.
    ``is_reply``: its text is written meanwhile. ``voice``: a name of the model's, or a timbre vector ``[E]``.
    ``best_of``: takes of each sentence."""

    voice: str | Tensor | None = None
    sampling: Sampling | None = None
    ramp: Ramp = RAMP
    ahead_s: float = inf
    speed: float = 1.0
    backlog_s: float = 8.0
    max_chars: int = 4096
    is_reply: bool = False
    best_of: int = 1


@dataclass
class Tally:
    """What one utterance took. Seconds since it was asked for; ``rested_s`` of them it was far enough ahead."""

    began: float
    first_audio_s: float | None = None
    ended_s: float = 0.0
    rested_s: float = 0.0
    audio_s: float = 0.0
    steps: int = 0
    frames: int = 0
    underruns: int = 0
    finish: Finish | None = None


class Speaking(Arrivals[Chunk]):
    """An utterance: :meth:`say` text, :meth:`end` it, iterate over its chunks. Leaving ``async with`` cancels it.

    Iterating raises ValueError for text that cannot be spoken. Methods without an underscore belong to the loop, but
    for those of :class:`speech_mtp.serving.engine.Job`.
    """

    def __init__(self, engine: Engine, manner: Manner, rate: int, ended: Callable[[Speaking], None]) -> None:
        super().__init__()
        self.manner, self.tally = manner, Tally(time.monotonic())
        self._engine, self._rate, self._ended = engine, rate, ended
        self._taken_s = 0.0  # the loop's side
        # The engine's side.
        self._stream: Stream | None = None
        self._slices: deque[str] = deque()
        self._text_ended = self._over = False
        self._playback = Playback(CUSHION_S, manner.speed)
        self._rests_since: float | None = None
        engine.do(self._open)
        engine.add(self)

    # -- the loop's side ------------------------------------------------------------------------------------------
    def say(self, text: str) -> None:
        """More text, cut anywhere."""
        slices = [text[i : i + SLICE] for i in range(0, len(text), SLICE)]
        self._engine.do(lambda _: self._slices.extend(slices))

    def end(self) -> None:
        """The text ends here."""
        self._engine.do(lambda _: self._end_text())

    def cancel(self, error: Exception | None = None) -> None:
        """Say no more; the engine makes at most the step that is running. ``error``: what whoever listens is told."""
        if not self._done:
            self._engine.do(lambda _: self._cancel())
            self._finished(error)

    async def begun(self) -> None:
        """Wait for the first sound. Raises ValueError for text that cannot be spoken."""
        await self._until(lambda chunk: len(chunk.wave) > 0)

    @property
    def outcome(self) -> str:
        """How it ended, where its last chunk does not tell."""
        return "cancelled" if self._error is None else "error"

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        async for chunk in super().__aiter__():
            self._take(chunk)
            yield chunk

    def _take(self, chunk: Chunk) -> None:
        was_full = self._playback.heard_s - self._taken_s > self.manner.backlog_s
        self._taken_s += len(chunk.wave) / self._rate
        if was_full and self._playback.heard_s - self._taken_s <= self.manner.backlog_s:
            self._engine.do(lambda _: None)  # it may sleep because of this

    def _arrive(self, chunks: list[Chunk], error: Exception | None, over: bool) -> None:
        if self._done:
            return
        self._receive(chunks)
        if error is not None or over:
            self._finished(error)

    def _finished(self, error: Exception | None) -> None:
        self._end(error)
        self.tally.ended_s = time.monotonic() - self.tally.began
        self._ended(self)

    # -- the engine's side ----------------------------------------------------------------------------------------
    def _open(self, scheduler: Scheduler) -> None:
        manner = self.manner
        try:
            limits = {"max_total": manner.max_chars, "best_of": manner.best_of}
            self._stream = scheduler.speak(manner.voice, manner.sampling, manner.ramp, **limits)
            self._stream.ahead_s, self._stream.speed = manner.ahead_s, manner.speed
            self._stream.is_reply = manner.is_reply
        except ValueError as error:
            self._tell([], error, True)

    def hear(self, text: str | None) -> None:
        """More text from another job of the engine's, read by the next tick; None: it ends here."""
        if text is None:
            self._text_ended = True
        else:
            self._slices.append(text)
        if self._stream is not None:
            self._feed(self._stream)

    def _end_text(self) -> None:
        self._text_ended = True

    def _cancel(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
        self._over = True

    def pump(self, now: float) -> bool:
        stream = self._stream
        if self._over or stream is None:
            return False
        worked = self._feed(stream)
        error: Exception | None = None
        chunks: list[Chunk] = []
        try:
            chunks = stream.take()
        except Exception as fault:
            error = fault
        finish = chunks[-1].finish if chunks else None
        if finish is not None and finish.reason == "cancelled":  # not by its client, so the engine has ended
            error = EngineFailedError("The engine has ended.")
        over = error is not None or finish is not None
        if chunks or over:
            self._count(chunks, now)
            self._tell(chunks, error, over)
        return self._hold(stream, now) or worked or bool(chunks) or over

    def _feed(self, stream: Stream) -> bool:
        """The next slice of text, or its end; what cannot be spoken is told by the stream."""
        try:
            if stream.done:
                return False
            if self._slices:
                stream.push(self._slices.popleft())
            elif self._text_ended:
                stream.finish_text()
                self._text_ended = False
            else:
                return False
        except Exception as error:
            stream.fail(error)
        return True

    def _count(self, chunks: list[Chunk], now: float) -> None:
        tally = self.tally
        for chunk in chunks:
            seconds = len(chunk.wave) / self._rate
            self._playback.hear(now, seconds)
            if seconds and tally.first_audio_s is None:
                tally.first_audio_s = now - tally.began
            tally.audio_s, tally.underruns = self._playback.heard_s, self._playback.gaps
            tally.steps, tally.frames = chunk.steps, chunk.frames
            tally.finish = chunk.finish or tally.finish

    def _hold(self, stream: Stream, now: float) -> bool:
        """Hold the stream while its listener does not take what there is; whether it is let go now."""
        was_held, stream.held = stream.held, self._playback.heard_s - self._taken_s > self.manner.backlog_s
        rests = stream.held or stream.buffered_s(now) > stream.ahead_s
        if rests and self._rests_since is None:
            self._rests_since = now
        elif not rests and self._rests_since is not None:
            self.tally.rested_s += now - self._rests_since
            self._rests_since = None
        return was_held and not stream.held

    def _tell(self, chunks: list[Chunk], error: Exception | None, over: bool) -> None:
        self._over = self._over or over
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._arrive, chunks, error, over)

    def over(self) -> bool:
        return self._over

    def wakes_in(self, now: float) -> float | None:
        stream = self._stream
        if stream is None or stream.held or stream.ahead_s == inf:
            return None
        wait = stream.buffered_s(now) - stream.ahead_s
        return wait if wait > 0 else None

    def fail(self, error: Exception) -> None:
        self._tell([], EngineFailedError(str(error)), True)
