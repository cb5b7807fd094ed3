"""Who may speak, who waits, who is told to come back: slots, a bounded queue, keys in turn."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque

from speech_mtp.serving.errors import ApiError

FIRST_GUESS_S = 4.0
"""For how long a slot is held, until some have been."""
MOST_RETRY_S = 60


class Slot:
    """The right to speak; give it back with :meth:`leave`, which may be called again."""

    def __init__(self, admission: Admission) -> None:
        self._admission: Admission | None = admission
        self._began = time.monotonic()

    def leave(self) -> None:
        """The slot is free for the next."""
        if self._admission is not None:
            self._admission._left(time.monotonic() - self._began)
            self._admission = None


class Admission:
    """``slots`` at a time, ``queue`` waiting; among the waiting, keys take turns. Lives in one event loop."""

    def __init__(self, slots: int, queue: int) -> None:
        self.slots, self.queue = slots, queue
        self.taken = 0
        self.draining = False
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()
        self._hold_s = FIRST_GUESS_S

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        return sum(map(len, self._waiting.values()))

    def retry_after_s(self) -> int:
        """Seconds after which everybody who waits now should have been let in."""
        return max(1, min(MOST_RETRY_S, math.ceil(self._hold_s * (self.waiting + 1) / self.slots)))

    async def enter(self, key: str) -> Slot:
        """A slot for ``key``, at once or after waiting. Raises ApiError: 429 when too many wait, 503 when draining."""
        self.check_open()
        if self.taken >= self.slots:
            await self._wait(key)
        else:
            self.taken += 1
        return Slot(self)

    def check_open(self) -> None:
        """Raise ApiError when the server is about to stop."""
        if self.draining:
            raise ApiError(503, "The server is shutting down; ask another, or later.", headers={"Retry-After": "5"})

    async def _wait(self, key: str) -> None:
        if self.waiting >= self.queue:
            after = self.retry_after_s()
            message = f"{self.taken} streams are being spoken and {self.waiting} wait; try again in {after} s."
            raise ApiError(429, message, headers={"Retry-After": str(after)})
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(key, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._left(None)  # it was this one's turn already
            else:
                self._forget(key, turn)
            raise

    def _forget(self, key: str, turn: asyncio.Future[None]) -> None:
        line = self._waiting.get(key, deque())
        if turn in line:
            line.remove(turn)
        if not line:
            self._waiting.pop(key, None)

    def _left(self, held_s: float | None) -> None:
        """A slot is free: the next key's first one takes it, or nobody."""
        if held_s is not None:
            self._hold_s += 0.2 * (held_s - self._hold_s)
        while self._waiting:
            key, line = self._waiting.popitem(last=False)
            turn = line.popleft()
            if line:
                self._waiting[key] = line  # behind the others
            if not turn.done():
                turn.set_result(None)
                return
        self.taken -= 1

    def drain(self) -> None:
        """Let nobody in any more; who waits is told so."""
        self.draining = True
        for line in self._waiting.values():
            for turn in line:
                if not turn.done():
                    turn.set_exception(
                        ApiError(503, "The server is shutting down; ask another.", headers={"Retry-After": "5"})
                    )
        self._waiting.clear()
