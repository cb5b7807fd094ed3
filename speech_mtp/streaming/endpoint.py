"""A chat endpoint in OpenAI's shape as the author of answers, so that any assistant can be given a voice.

One thread an answer reads its server-sent events. Only the address that the operator gave is asked; redirections are
not followed.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from speech_mtp.lm.chat import Message
from speech_mtp.streaming.authors import AuthorError, Outcome, Question, Wish
from speech_mtp.streaming.scheduler import Scheduler
from speech_mtp.types import Finish

MOST_LINE = 2**20
MOST_CHARS = 200_000
"""Characters of an answer that are read."""


class Endpoint:
    """``url`` is the base that clients of OpenAI are given, ``http://host:port/v1``. ``key``: its bearer token.

    Raises ValueError for a URL that is none of HTTP's.
    """

    def __init__(self, url: str, model: str, key: str | None = None, timeout_s: float = 60.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"The endpoint {url!r} is no address of HTTP; give one like http://127.0.0.1:8080/v1.")
        self.name = self._model = model
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname, parts.port
        self._path = parts.path.rstrip("/") + "/chat/completions"
        self._key, self._timeout_s = key, timeout_s

    def prepare(self, messages: Sequence[Message], wish: Wish) -> Question:
        """Everything is sent: what does not fit is the endpoint's to refuse."""
        return Question(list(messages), wish)

    def write(self, scheduler: Scheduler, question: Question, news: Callable[[], None]) -> RemoteWriting:
        return RemoteWriting(self.connection(), self._path, self._headers(), self._body(question), news)

    def connection(self) -> http.client.HTTPConnection:
        """A connection to it, not yet opened."""
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=self._timeout_s)

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        return headers if self._key is None else {**headers, "Authorization": f"Bearer {self._key}"}

    def _body(self, question: Question) -> bytes:
        wish = question.wish
        asked = {
            "temperature": wish.temperature,
            "top_p": wish.top_p,
            "seed": wish.seed,
            "max_tokens": wish.max_tokens,
            "stop": list(wish.stops) or None,
        }
        body = {
            "model": self._model,
            "messages": [dict(message) for message in question.messages],
            "stream": True,
            "stream_options": {"include_usage": True},
            **{name: value for name, value in asked.items() if value is not None},
        }
        return json.dumps(body).encode()


class RemoteWriting:
    """One answer of an endpoint; a thread reads it."""

    def __init__(
        self,
        connection: http.client.HTTPConnection,
        path: str,
        headers: dict[str, str],
        body: bytes,
        news: Callable[[], None],
    ) -> None:
        self._connection, self._request, self._news = connection, (path, headers, body), news
        self._pieces: deque[str] = deque()
        self._done = threading.Event()
        self._closed = self._finished = False
        self._chars = 0
        self._error: AuthorError | None = None
        self._socket: socket.socket | None = None
        self._outcome = Outcome(Finish("stop"))
        threading.Thread(target=self._read, name="endpoint", daemon=True).start()

    @property
    def writing(self) -> bool:
        return not self._done.is_set() or bool(self._pieces) or self._error is not None

    def take(self) -> list[str]:
        pieces = []
        while self._pieces:
            pieces.append(self._pieces.popleft())
        if self._error is not None and not pieces and not self._pieces:
            raise self._error
        return pieces

    def take_steps(self) -> list[list[str]]:
        return []

    def close(self) -> Outcome:
        if not self._done.is_set():
            self._outcome.finish = Finish("cancelled")
        self._closed = True
        if self._socket is not None:
            with contextlib.suppress(OSError):  # it has been closed by the other side
                self._socket.shutdown(socket.SHUT_RDWR)
        return self._outcome

    # -- the thread -----------------------------------------------------------------------------------------------
    def _read(self) -> None:
        try:
            for event in self._events():
                self._hear(event)
                self._news()
        except AuthorError as error:
            self._error = error
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError, IndexError):
            self._error = AuthorError("The language model's endpoint cannot be reached, or broke off.")
        finally:
            self._connection.close()
            self._done.set()
            self._news()

    def _events(self) -> Iterator[dict[str, Any]]:
        path, headers, body = self._request
        self._connection.connect()
        self._socket = self._connection.sock
        if self._closed:
            return
        self._connection.request("POST", path, body, headers)
        answer = self._connection.getresponse()
        if answer.status != 200:
            raise AuthorError(_refusal(answer.status, answer.read(MOST_LINE)))
        while line := answer.readline(MOST_LINE):
            data = line.removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
            if data == b"[DONE]":
                return
            if data:
                yield json.loads(data)
        if not self._finished:
            raise AuthorError("The language model's endpoint broke off in the middle of its answer.")

    def _hear(self, event: dict[str, Any]) -> None:
        if event.get("error"):
            raise AuthorError("The language model's endpoint failed in the middle of its answer.")
        usage = event.get("usage")
        if usage:
            self._outcome.prompt_tokens = int(usage["prompt_tokens"])
            self._outcome.tokens = int(usage["completion_tokens"])
        for choice in event.get("choices") or ():
            piece = (choice.get("delta") or {}).get("content")
            if piece:
                self._chars += len(piece)
                self._pieces.append(str(piece))
            if choice.get("finish_reason"):
                self._finished = True
                self._outcome.finish = Finish("length" if choice["finish_reason"] == "length" else "stop")
        if self._chars > MOST_CHARS:
            raise AuthorError(f"The answer is longer than {MOST_CHARS} characters.")


def _refusal(status: int, body: bytes) -> str:
    """What a client is told of an answer that is no answer; the endpoint's words only where they are about the
    request."""
    if status == 400:
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return f"The language model's endpoint refuses: {str(json.loads(body)['error']['message'])[:300]}"
    return f"The language model's endpoint answers with {status}."
