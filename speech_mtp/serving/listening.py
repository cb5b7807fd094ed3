"""One recording on its way to text: the worker's thread decodes and recognises it, segments come to the loop."""

from __future__ import annotations

from collections.abc import Callable

from speech_mtp.frontends.base import SAMPLE_RATE, Hint, Recogniser, Segment, Transcript, Wave, joined
from speech_mtp.serving.arrivals import Arrivals

Source = Callable[[], Wave]
"""Gives the sound at the recogniser's rate; called in the worker's thread. Raises ValueError for what is no sound."""


class Listening(Arrivals[Segment]):
    """Iterate over the segments. Leaving ``async with`` ends it behind the segment that is recognised at the moment.

    Iterating raises ValueError for a recording that cannot be heard.
    """

    def __init__(
        self, recogniser: Recogniser, source: Source, hint: Hint, ended: Callable[[Listening], None] = lambda _: None
    ) -> None:
        super().__init__()
        self.duration_s = 0.0
        self._recogniser, self._source, self._hint, self._ended = recogniser, source, hint, ended
        self._cancelled = False

    # -- the loop's side ------------------------------------------------------------------------------------------
    def cancel(self, error: Exception | None = None) -> None:
        """Listen no more. ``error``: what whoever reads is told."""
        self._cancelled = True
        if not self._done:
            self._finished(error)

    @property
    def outcome(self) -> str:
        """How it ended: ``stop``, ``cancelled`` or ``error``."""
        return "error" if self._error is not None else "cancelled" if self._cancelled else "stop"

    async def begun(self) -> None:
        """Wait for the first segment, or the end. Raises what kept it from being heard."""
        await self._until(lambda segment: True)

    async def transcript(self) -> Transcript:
        """All of it."""
        return joined([segment async for segment in self], self.duration_s)

    def _arrive(self, segments: list[Segment], error: Exception | None, over: bool) -> None:
        if self._done:
            return
        self._receive(segments)
        if over:
            self._finished(error)

    def _finished(self, error: Exception | None) -> None:
        self._end(error)
        self._ended(self)

    # -- the worker's side ----------------------------------------------------------------------------------------
    def work(self) -> None:
        """Listen to all of it, or until it is cancelled."""
        error: Exception | None = None
        try:
            if not self._cancelled:
                self._listen()
        except Exception as fault:
            error = fault
        self._tell([], error, True)

    def _listen(self) -> None:
        wave = self._source()
        self.duration_s = len(wave) / SAMPLE_RATE
        for segment in self._recogniser.segments(wave, self._hint):
            if self._cancelled:
                return
            self._tell([segment])

    def _tell(self, segments: list[Segment], error: Exception | None = None, over: bool = False) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._arrive, segments, error, over)
