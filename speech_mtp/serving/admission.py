"""Who may speak, who waits, who is told to come back: slots, a bounded queue, keys in turn."""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections import OrderedDict, deque
from dataclasses import dataclass

from speech_mtp.serving.errors import ApiError

SECONDS_A_CHARACTER = 0.07
"""For how long a text holds its slot, until some have: as long as it takes to listen to it."""
USUAL_CHARACTERS = 100
"""Of a text that is still being written."""
MOST_RETRY_S = 60


class Slot:
    """The right to speak; give it back with :meth:`leave`, which may be called again."""

    def __init__(self, admission: Admission, characters: int) -> None:
        self._admission: Admission | None = admission
        self.characters, self._began = characters, time.monotonic()

    @property
    def held_s(self) -> float:
        """For how long it has been held."""
        return time.monotonic() - self._began

    def leave(self) -> None:
        """The slot is free for the next."""
        if self._admission is not None:
            self._admission._left(self)
            self._admission = None


class Admission:
    """``slots`` at a time, ``queue`` waiting; among the waiting, keys take turns. Lives in one event loop. ``work``
    says what the slots are for."""

    def __init__(self, slots: int, queue: int, work: str = "streams are being spoken") -> None:
        self.slots, self.queue, self.work = slots, queue, work
        self.taken = 0
        self.draining = False
        self._held: set[Slot] = set()
        self._waiting: OrderedDict[str, deque[_Turn]] = OrderedDict()
        self._pace_s = SECONDS_A_CHARACTER

    @property
    def waiting(self) -> int:
        """How many wait for a slot."""
        return sum(map(len, self._waiting.values()))

    def retry_after_s(self) -> int:
        """Seconds after which everybody who waits now should have been let in, by the lengths of their texts and by how
        long texts have held their slots lately."""
        free_at = [max(0.0, slot.characters * self._pace_s - slot.held_s) for slot in self._held]
        free_at += [0.0] * (self.slots - len(free_at))
        heapq.heapify(free_at)
        for turn in (turn for line in self._waiting.values() for turn in line):
            heapq.heapreplace(free_at, free_at[0] + turn.characters * self._pace_s)
        return max(1, min(MOST_RETRY_S, math.ceil(free_at[0])))

    async def enter(self, key: str, characters: int | None = None) -> Slot:
        """A slot for ``key`` and a text of so many ``characters`` (None: not known yet), at once or after waiting.
        Raises ApiError: 429 when too many wait, 503 when draining."""
        self.check_open()
        characters = characters or USUAL_CHARACTERS
        if self.taken >= self.slots:
            await self._wait(key, characters)
        else:
            self.taken += 1
        slot = Slot(self, characters)
        self._held.add(slot)
        return slot

    def check_open(self) -> None:
        """Raise ApiError when the server is about to stop."""
        if self.draining:
            raise ApiError(503, "The server is shutting down; ask another, or later.", headers={"Retry-After": "5"})

    async def _wait(self, key: str, characters: int) -> None:
        if self.waiting >= self.queue:
            after = self.retry_after_s()
            message = f"{self.taken} {self.work} and {self.waiting} wait; try again in {after} s."
            raise ApiError(429, message, headers={"Retry-After": str(after)})
        turn = _Turn(asyncio.get_running_loop().create_future(), characters)
        self._waiting.setdefault(key, deque()).append(turn)
        try:
            await turn.come
        except asyncio.CancelledError:
            if turn.come.done() and not turn.come.cancelled() and turn.come.exception() is None:
                self._next()  # it was this one's turn already
            else:
                self._forget(key, turn)
            raise

    def _forget(self, key: str, turn: _Turn) -> None:
        line = self._waiting.get(key, deque())
        if turn in line:
            line.remove(turn)
        if not line:
            self._waiting.pop(key, None)

    def _left(self, slot: Slot) -> None:
        self._held.discard(slot)
        self._pace_s += 0.2 * (slot.held_s / slot.characters - self._pace_s)
        self._next()

    def _next(self) -> None:
        """A slot is free: the next key's first one takes it, or nobody."""
        while self._waiting:
            key, line = self._waiting.popitem(last=False)
            turn = line.popleft()
            if line:
                self._waiting[key] = line  # behind the others
            if not turn.come.done():
                turn.come.set_result(None)
                return
        self.taken -= 1

    def drain(self) -> None:
        """Let nobody in any more; who waits is told so."""
        self.draining = True
        for line in self._waiting.values():
            for turn in line:
                if not turn.come.done():
                    turn.come.set_exception(
                        ApiError(503, "The server is shutting down; ask another.", headers={"Retry-After": "5"})
                    )
        self._waiting.clear()


@dataclass(eq=False)
class _Turn:
    """Somebody in the queue."""

    come: asyncio.Future[None]
    characters: int
