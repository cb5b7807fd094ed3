"""What routes share: the service, who asks, and noticing that a client has left before it was answered."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Annotated, Any, TypeVar

from fastapi import Depends
from starlette.requests import HTTPConnection, Request
from starlette.websockets import WebSocket

from speech_mtp.serving.door import KEY_PROTOCOL
from speech_mtp.serving.service import VoiceService

T = TypeVar("T")


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


def service_of(connection: HTTPConnection) -> VoiceService:
    """The app's service."""
    found: VoiceService = connection.app.state.service
    return found


def client_of(connection: HTTPConnection) -> str:
    """Who asks, as the door knows it."""
    return str(connection.state.client)


Service = Annotated[VoiceService, Depends(service_of)]
Client = Annotated[str, Depends(client_of)]


async def accept(websocket: WebSocket) -> None:
    """Open a socket. A browser that offered sub-protocols wants one of them back; never the one that holds its key."""
    offered = [name for name in websocket.scope.get("subprotocols", []) if not name.startswith(KEY_PROTOCOL)]
    chosen = "realtime" if "realtime" in offered else next(iter(offered), None)
    await websocket.accept(subprotocol=chosen)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of ``work``, which is cancelled when the client leaves. Raises ClientLeft then."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientLeft
        return task.result()
    finally:
        for one in (task, gone):
            if not one.done():
                one.cancel()
                await asyncio.wait({one})


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue
