"""What runs beside the reading of a session's events, and ends with the session."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.websockets import WebSocketDisconnect

from speech_mtp.serving.errors import told

T = TypeVar("T")


class Tasks:
    """The tasks of one session."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()

    def begin(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run ``work`` until it ends or everything is cancelled."""
        task = asyncio.ensure_future(work)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        """A fault of ours goes to the log, whoever else waits for the task. That the client has left is none."""
        self._running.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception) and not isinstance(error, WebSocketDisconnect | TimeoutError):
            told(error)

    def cancel(self) -> None:
        """End all of them."""
        for task in list(self._running):
            task.cancel()
