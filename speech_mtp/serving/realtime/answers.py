"""The responses of one session: one after the other in its conversation, others out of band beside them."""

from __future__ import annotations

import asyncio
import contextlib
import time

from starlette.websockets import WebSocketDisconnect

from speech_mtp.serving.errors import ApiError
from speech_mtp.serving.realtime.response import Asked, Response, Send
from speech_mtp.serving.realtime.tasks import Tasks
from speech_mtp.serving.service import VoiceService
from speech_mtp.streaming.playback import Playback


class Answers:
    """``active`` is the response of the conversation that is being made; ``playback`` plays what was sent."""

    def __init__(self, service: VoiceService, client: str, send: Send, tasks: Tasks) -> None:
        self.active: Response | None = None
        self.playback = Playback()
        self._service, self._client, self._send, self._tasks = service, client, send, tasks
        self._task: asyncio.Task[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a response of the conversation has not told its end."""
        return self._task is not None

    def plays(self, grace_s: float = 0.0) -> bool:
        """Whether the client still plays what was sent, or did so ``grace_s`` ago."""
        return time.monotonic() < self.playback.until + grace_s

    async def begin(self, asked: Asked) -> None:
        """Begin a response, once the one before it, which is cancelled, has told its end."""
        in_band = asked.conversation is not None
        while in_band and self._task is not None:  # again: somebody else may have waited for the same end
            if self.active is not None:
                self.active.cancel("turn_detected")
            await asyncio.wait({self._task})
        response = Response(self._service, self._client, asked, self._send, self._sounded)
        task = self._tasks.begin(self._run(response))
        if in_band:
            self.active, self._task = response, task

    async def ended(self) -> None:
        """Wait until no response of the conversation is being made."""
        while self._task is not None:
            await asyncio.wait({self._task})

    def check_free(self) -> None:
        """Raise ApiError while a response of the conversation is being made that nobody has stopped."""
        if self.active is not None and not self.active.over:
            code = "conversation_already_has_active_response"
            raise ApiError(400, "A response is being made; cancel it or wait for its end.", None, code)

    def cancel(self, response_id: object) -> None:
        """The client wants no more of a response (None: of the one that is made). Raises ApiError if there is none."""
        active = self.active
        if active is None or active.over or (response_id is not None and response_id != active.id):
            message = "Cancellation failed: no such response is being made."
            raise ApiError(400, message, "response_id", "response_cancel_not_active")
        active.cancel("client_cancelled")
        self.playback.until = 0.0

    def interrupt(self) -> bool:
        """Somebody speaks; whether that stops a response of which nothing was told."""
        self.playback.until = 0.0
        if self.active is None:
            return False
        self.active.cancel("turn_detected")
        return not self.active.told_anything

    async def _run(self, response: Response) -> None:
        try:
            with contextlib.suppress(WebSocketDisconnect, TimeoutError, RuntimeError):  # the client has left
                await response.run()
        finally:
            if self.active is response:
                self.active = self._task = None

    def _sounded(self, seconds: float) -> None:
        """So much more sound has been sent."""
        self.playback.hear(time.monotonic(), seconds)
