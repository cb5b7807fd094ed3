"""What another thread makes for one client, as the loop receives it."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

Item = TypeVar("Item")


class Arrivals(ABC, Generic[Item]):
    """Iterate over the items; what ended them too early is raised behind the last. Leaving ``async with`` cancels. All
    of it belongs to the loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._items: deque[Item] = deque()
        self._news = asyncio.Event()
        self._error: Exception | None = None
        self._done = False

    @abstractmethod
    def cancel(self, error: Exception | None = None) -> None:
        """Make no more. ``error``: what whoever iterates is told."""

    async def __aiter__(self) -> AsyncIterator[Item]:
        while True:
            while self._items:
                yield self._items.popleft()
            if self._error is not None:
                raise self._error
            if self._done:
                return
            await self._wait()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()

    async def _until(self, enough: Callable[[Item], bool]) -> None:
        """Wait for an item that is ``enough``, or the end. Raises what kept every item from coming."""
        while not self._done and not any(enough(item) for item in self._items):
            await self._wait()
        if self._error is not None and not self._items:
            raise self._error

    async def _wait(self) -> None:
        self._news.clear()
        await self._news.wait()

    def _receive(self, items: Iterable[Item]) -> None:
        self._items += items
        self._news.set()

    def _end(self, error: Exception | None) -> None:
        self._done, self._error = True, error
        self._news.set()


async def merged(sources: list[AsyncIterator[Any]]) -> AsyncIterator[Any]:
    """The items of all ``sources`` as they come, those of earlier ones first. The exception that one ends with comes
    last, when the others have ended: what is written does not suffer from what cannot be spoken."""
    waiting = {source: asyncio.ensure_future(_next(source)) for source in sources}
    failures: list[Exception] = []
    try:
        while waiting:
            await asyncio.wait(waiting.values(), return_when=asyncio.FIRST_COMPLETED)
            for source, task in list(waiting.items()):
                if not task.done():
                    continue
                del waiting[source]
                try:
                    item = task.result()
                except StopAsyncIteration:
                    continue
                except Exception as error:
                    failures.append(error)
                    continue
                yield item
                waiting[source] = asyncio.ensure_future(_next(source))
        for failure in failures:
            yield failure
    finally:
        for task in waiting.values():
            task.cancel()


async def _next(source: AsyncIterator[Any]) -> Any:
    return await anext(source)
