"""Work that would hold up the event loop and is not the engine's: one thread of its own, before it a bounded queue in
which keys take turns."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from speech_mtp.serving.admission import Admission, Slot

T = TypeVar("T")


class Worker:
    """Does one thing after the other, while ``queue`` others may wait. ``work`` says what is done, for whoever is told
    to come back."""

    def __init__(self, name: str, queue: int, work: str) -> None:
        self.admission = Admission(1, queue, work)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)

    @property
    def busy(self) -> bool:
        """Whether something is done or waits."""
        return bool(self.admission.taken)

    async def start(self, key: str, work: Callable[[], T]) -> Future[T]:
        """Begin ``work``, as soon as it is the turn of ``key``. Raises ApiError: 429 when too many wait, 503 when the
        server stops."""
        slot = await self.admission.enter(key)
        loop = asyncio.get_running_loop()
        future = self._thread.submit(work)
        future.add_done_callback(lambda _: _leave(loop, slot))
        return future

    async def run(self, key: str, work: Callable[[], T]) -> T:
        """What ``work`` gives. Errors as for :meth:`start`, and its own."""
        return await asyncio.wrap_future(await self.start(key, work))

    def close(self) -> None:
        """Begin nothing any more; what has begun ends by itself."""
        self._thread.shutdown(wait=False, cancel_futures=True)


def _leave(loop: asyncio.AbstractEventLoop, slot: Slot) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(slot.leave)
