"""A real server of a tiny model on a free port, in this process."""

from __future__ import annotations

import asyncio
import io
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx2
from fastapi import FastAPI

from speech_mtp.lm.bundle import SpeechModel
from speech_mtp.serving.app import create_app
from speech_mtp.serving.server import DrainingServer, make_server
from speech_mtp.serving.service import VoiceService
from speech_mtp.serving.settings import Settings
from tests.tiny import tiny_model

TEXT = "Hello there, the quick brown fox jumps."
LONG = " ".join(["The quick brown fox jumps over the lazy dog, and it is good."] * 40)


@dataclass
class Running:
    """A server, and a client of it."""

    server: DrainingServer
    service: VoiceService
    url: str
    http: httpx2.Client

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def post(self, path: str = "/v1/audio/speech", **body: Any) -> httpx2.Response:
        return self.http.post(path, json=body)

    def metric(self, name: str) -> float:
        lines = self.service.figures().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name)


@contextmanager
def serving(
    settings: Settings | None = None,
    model: SpeechModel | None = None,
    mounting: Callable[[FastAPI], None] | None = None,
    **more: Any,
) -> Iterator[Running]:
    """Warm when it is handed out, gone afterwards. ``mounting`` adds something beside the API."""
    app = create_app(model or tiny_model(), settings or Settings(), **more)
    if mounting is not None:
        mounting(app)
    server = make_server(app, "127.0.0.1", 0)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with httpx2.Client(base_url=url, timeout=30) as client:
        until(lambda: client.get("/health/ready").status_code == 200)
        yield Running(server, app.state.service, url, client)
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive(), f"the server did not end; it is here:\n{whereabouts(thread, server)}"


def whereabouts(thread: threading.Thread, server: DrainingServer) -> str:
    """The stack of ``thread`` and of every task of the server's loop."""
    frame = sys._current_frames().get(thread.ident or 0)
    told = io.StringIO("".join(traceback.format_stack(frame)) if frame else "")
    told.seek(0, io.SEEK_END)
    if server._loop is not None:
        for task in asyncio.all_tasks(server._loop):
            task.print_stack(file=told)
    return told.getvalue()


def until(happens: Callable[[], bool], timeout_s: float = 20.0) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + timeout_s
    while not happens():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)
