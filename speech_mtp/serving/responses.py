"""A streamed answer that does not wait for ever for a client that does not read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send


class StalledClientError(Exception):
    """The client has taken nothing for too long; its stream is cancelled."""


class PacedResponse(StreamingResponse):
    """Streams ``content`` piece by piece; a piece that the client does not take within ``stall_s`` ends it.

    However it ends, even before the first piece, ``speaking``, of which ``content`` is made, is cancelled.
    """

    def __init__(
        self,
        content: AsyncIterator[bytes],
        speaking: AbstractAsyncContextManager[Any],
        media_type: str,
        headers: Mapping[str, str],
        stall_s: float,
    ) -> None:
        super().__init__(content, headers=headers, media_type=media_type)
        self._speaking, self._stall_s = speaking, stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._speaking:
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        content = self.body_iterator
        assert isinstance(content, AsyncGenerator)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for piece in content:
                try:
                    async with asyncio.timeout(self._stall_s):
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                except TimeoutError:
                    raise StalledClientError from None
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await content.aclose()
