"""The door of the service: who may come in, under which id, and what the log says of it.

One ASGI middleware for HTTP and WebSockets alike, because the framework's own see HTTP only. In this order: request id,
``Host`` (against DNS rebinding), ``Origin`` (against pages of others), key or pass, and, behind the routes, faults of
ours. A WebSocket is refused before it is opened. Log lines hold the id, the route's pattern and the status; nothing
that a client wrote.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from speech_mtp.serving.client_secrets import ClientSecrets
from speech_mtp.serving.errors import REQUEST_ID, ApiError, internal, where
from speech_mtp.serving.metrics import Metrics
from speech_mtp.serving.passes import COOKIE, Passes
from speech_mtp.serving.responses import StalledClientError
from speech_mtp.serving.settings import Settings
from speech_mtp.serving.voices import OF_A_KEY

log = logging.getLogger("speech_mtp.serving")

OWN_ID = re.compile(r"[A-Za-z0-9-]{1,64}")
KEY_PROTOCOL = "openai-insecure-api-key."
"""A browser cannot set headers of a WebSocket, so OpenAI's clients send the key as a sub-protocol."""
OPEN_PATHS = ("/health", "/health/ready", "/health/live")
SECRETS_OPEN = "/v1/realtime"
LISTS = ("/v1/audio/voices", "/v1/audio/models")


@dataclass
class Pages:
    """What a web page that is mounted beside the API adds: paths that are ``open`` without a key, and the ``entrance``,
    where a browser that wants a page below ``prefix`` and has no pass is sent to show a key."""

    open: set[str] = field(default_factory=set)
    prefix: str | None = None
    entrance: str = ""


class Door:
    """Lets requests through to ``app``, or answers why not."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        secrets: ClientSecrets,
        passes: Passes,
        pages: Pages,
    ) -> None:
        self.app, self.settings, self.metrics, self.client_secrets = app, settings, metrics, secrets
        self.passes, self.pages = passes, pages
        self._clients = [OF_A_KEY + hashlib.sha256(key.encode()).hexdigest()[:32] for key in settings.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked = headers.get("x-request-id", "")
        visit = Visit(asked if OWN_ID.fullmatch(asked) else secrets.token_hex(8), send)
        state = scope.setdefault("state", {})
        REQUEST_ID.set(visit.id)
        try:
            self._check_host(headers.get("host", ""))
            self._check_origin(headers)
            state["client"] = self._client(scope, headers)
            if scope["type"] == "http":
                receive = self._limited(scope["path"], headers, receive)
            await self.app(scope, receive, visit.send)
        except ApiError as error:
            await self._refuse(error, scope, receive, visit)
        except StalledClientError:
            log.info("id=%s does not read and is cut off", visit.id)
        except Exception as error:
            log.error("id=%s failed: %s", visit.id, where(error))
            if visit.status is None:
                await self._refuse(internal(), scope, receive, visit)
        finally:
            self._note(scope, visit)

    def _check_host(self, host: str) -> None:
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        if "*" not in self.settings.allowed_hosts and name.lower() not in self.settings.allowed_hosts:
            raise ApiError(403, "This host name is not served here; the operator can allow it with --allow-host.")

    def _check_origin(self, headers: Headers) -> None:
        origin = headers.get("origin")
        if origin is None or origin in self.settings.allowed_origins:
            return
        if urlsplit(origin).netloc.lower() != headers.get("host", "").lower():
            raise ApiError(403, "Pages of this origin may not call; the operator can allow it with --allow-origin.")

    def _client(self, scope: Scope, headers: Headers) -> str:
        """Who asks: a name for fairness and for what somebody leaves here; a key has the same one after a restart.
        Raises ApiError 401 for whoever has no key and needs one."""
        address = scope["client"][0] if scope.get("client") else "local"
        path, sent = scope["path"], next(_keys_sent(headers), None)
        secret = self.client_secrets.read(sent or "") if path == SECRETS_OPEN else None
        if secret is not None:
            client, scope["state"]["session"] = secret
            return client
        number = self.passes.number_of(sent) if sent is not None else self.passes.holder(_pass_sent(headers))
        if number is not None:
            return self._clients[number]
        listed = self.settings.public_lists and path in LISTS and scope.get("method") == "GET"
        if not self.settings.keys or path in OPEN_PATHS or path in self.pages.open or listed:
            return f"address {address}"
        message = "Send a valid API key in the header, as in Authorization: Bearer KEY."
        raise ApiError(401, message, headers={"WWW-Authenticate": "Bearer"})

    def _limited(self, path: str, headers: Headers, receive: Receive) -> Receive:
        """``receive``, which refuses a body that is too large, by its announced length or as soon as it is."""
        most = self.settings.max_bodies.get(path, self.settings.max_body)
        too_large = ApiError(413, f"The request has more than {most} bytes; send less at a time.")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > most:
            raise too_large
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > most:
                raise too_large
            return message

        return limited

    async def _refuse(self, error: ApiError, scope: Scope, receive: Receive, visit: Visit) -> None:
        if visit.status is not None:
            return
        response: Response = error.response()
        if error.status_code == 401 and _wants_page(scope, self.pages.prefix):
            response = RedirectResponse(self.pages.entrance, 303)
        if scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
            await response(scope, receive, visit.send)
        else:
            await visit.send({"type": "websocket.close", "code": 1008, "reason": ""})

    def _note(self, scope: Scope, visit: Visit) -> None:
        route = getattr(scope.get("route"), "path", "-")
        method = scope.get("method", "WS")
        seconds = time.monotonic() - visit.began
        log.info("id=%s %s %s %s %.3f s", visit.id, method, route, visit.status or "gone", seconds)
        self.metrics.requests.labels(route, str(visit.status or "gone")).inc()


@dataclass
class Visit:
    """One request: its id, and the status of the answer once it has begun."""

    id: str
    forward: Send
    status: int | None = None

    def __post_init__(self) -> None:
        self.began = time.monotonic()

    async def send(self, message: Message) -> None:
        """Pass on; the answer's head gets the id."""
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
            MutableHeaders(scope=message)["x-request-id"] = self.id
        elif message["type"] == "websocket.accept":
            self.status = 101
            message.setdefault("headers", [])
            MutableHeaders(scope=message)["x-request-id"] = self.id
        elif message["type"] == "websocket.close" and self.status is None:
            self.status = 403
        await self.forward(message)


def _keys_sent(headers: Headers) -> Iterator[str]:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        yield key.strip()
    for protocol in headers.get("sec-websocket-protocol", "").split(","):
        if protocol.strip().startswith(KEY_PROTOCOL):
            yield protocol.strip().removeprefix(KEY_PROTOCOL)


def _pass_sent(headers: Headers) -> str:
    try:
        cookies = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return ""
    return cookies[COOKIE].value if COOKIE in cookies else ""


def _wants_page(scope: Scope, prefix: str | None) -> bool:
    """Whether a browser is on its way to a page below ``prefix``."""
    if prefix is None or scope["type"] != "http" or scope["method"] != "GET":
        return False
    return str(scope["path"]).startswith(prefix) and "text/html" in Headers(scope=scope).get("accept", "")
