"""uvicorn, made to end politely and to close connections that only cost.

On the first SIGTERM or SIGINT the listener stays open (whoever comes is told 503), streams end, sockets are told, and
only then does uvicorn shut down; the exit code is 0. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import json
import logging
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from speech_mtp.serving.errors import ApiError
from speech_mtp.serving.service import VoiceService
from speech_mtp.serving.settings import Settings

log = logging.getLogger("speech_mtp.serving")

LAST_BYTES_S = 10
"""For what is still in flight when the last stream has ended."""


class DrainingServer(uvicorn.Server):
    """Ends when the streams of ``service`` have, or after ``drain_s``."""

    def __init__(self, config: uvicorn.Config, service: VoiceService) -> None:
        super().__init__(config)
        self._service = service
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Future[None] | None = None

    async def startup(self, sockets: Any = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        for server in self.servers:
            host, port = server.sockets[0].getsockname()[:2]
            log.info("serving at http://%s:%d", f"[{host}]" if ":" in host else host, port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._draining is not None or self._loop is None:
            self.should_exit = self.force_exit = True
            return
        self._loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        await self._service.drain(self._service.settings.drain_s)
        self.should_exit = True


def careful_protocol(settings: Settings) -> type[H11Protocol]:
    """HTTP/1.1 of uvicorn that hangs up on a request's head that does not come within ``head_s`` (slow loris), and on
    clients that do not read for ``stall_s``. With ``max_connections`` open, whoever has waited longest without having
    asked for anything makes room for the next, so that silent connections keep nobody out."""
    waiting: dict[CarefulProtocol, None] = {}  # whose request's head has not come, the oldest first

    class CarefulProtocol(H11Protocol):
        _head: asyncio.TimerHandle | None = None
        _stall: asyncio.TimerHandle | None = None
        _upgraded = False  # to a WebSocket, which is no longer this protocol's

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > settings.max_connections:
                silent = next(iter(waiting), self)
                silent._head_came()
                silent.transport.abort()
                if silent is self:
                    return
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._head_came()
            self._unstall()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._upgraded:
                return
            idle = self.cycle is None or self.cycle.response_complete
            if not idle:
                self._head_came()
            elif self._head is None:
                self._await_head()

        def pause_writing(self) -> None:
            super().pause_writing()
            if self._stall is None:
                self._stall = self.loop.call_later(settings.stall_s + 1, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._unstall()

        def handle_websocket_upgrade(self, event: h11.Request) -> None:
            self._head_came()
            self._upgraded = True
            super().handle_websocket_upgrade(event)

        def send_400_response(self, msg: str) -> None:
            body = json.dumps({"error": ApiError(400, msg).body()}).encode()
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            for event in (
                h11.Response(status_code=400, headers=[*headers, (b"content-length", str(len(body)).encode())]),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def _await_head(self) -> None:
            self._head = self.loop.call_later(settings.head_s, self.transport.abort)
            waiting[self] = None

        def _head_came(self) -> None:
            if self._head is not None:
                self._head.cancel()
                self._head = None
                del waiting[self]

        def _unstall(self) -> None:
            if self._stall is not None:
                self._stall.cancel()
                self._stall = None

    return CarefulProtocol


def make_server(app: FastAPI, host: str, port: int) -> DrainingServer:
    """A server of ``app`` (made by :func:`speech_mtp.serving.app.create_app`), not yet running."""
    service: VoiceService = app.state.service
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=careful_protocol(service.settings),
        ws="websockets-sansio",
        ws_max_size=service.settings.max_message,
        ws_per_message_deflate=False,
        loop="asyncio",
        log_config=None,
        log_level="warning",  # it would tell the query of a socket's address
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=LAST_BYTES_S,
    )
    return DrainingServer(config, service)
