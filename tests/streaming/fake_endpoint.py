"""A chat endpoint in OpenAI's shape that says what it is told to, piece by piece."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Script:
    """``pieces`` to say; ``before(i)`` is called before piece i. ``requests`` and their ``headers`` are kept."""

    pieces: list[str]
    before: Callable[[int], None] = lambda i: None
    status: int = 200
    breaks: bool = False
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    left: threading.Event = field(default_factory=threading.Event)


@contextmanager
def endpoint(script: Script) -> Iterator[Script]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            script.requests.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            script.headers.append({**dict(self.headers), "path": self.path})
            self.send_response(script.status)
            self.end_headers()
            if script.status != 200:
                self.wfile.write(json.dumps({"error": {"message": "too long for me", "key": "secret"}}).encode())
                return
            try:
                for i, piece in enumerate(script.pieces):
                    script.before(i)
                    self._say({"choices": [{"index": 0, "delta": {"content": piece}}]})
                if not script.breaks:
                    self._say({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
                    self._say({"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 7}})
                    self.wfile.write(b"data: [DONE]\n\n")
            except OSError:
                script.left.set()

        def _say(self, event: dict[str, Any]) -> None:
            self.wfile.write(b": a comment\n\ndata: " + json.dumps(event).encode() + b"\n\n")
            self.wfile.flush()

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    script.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield script
    server.shutdown()
    server.server_close()
