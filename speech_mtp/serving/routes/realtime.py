"""``WS /v1/realtime``: a voice conversation over one socket, and the short-lived keys that open one for a browser."""

from __future__ import annotations

import contextlib
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import BaseModel, ConfigDict, Field

from speech_mtp.serving.bodies import StrictRoute
from speech_mtp.serving.errors import ApiError
from speech_mtp.serving.realtime import events
from speech_mtp.serving.realtime.config import SessionConfig
from speech_mtp.serving.realtime.ear import silero
from speech_mtp.serving.realtime.session import Session
from speech_mtp.serving.routes.shared import Client, Service, accept, client_of, service_of
from speech_mtp.serving.service import VoiceService

router = APIRouter()
secrets_router = APIRouter(route_class=StrictRoute)
MODELS = ("gpt-realtime", "gpt-4o-realtime", "gpt-4o-mini-realtime")
"""What the names of OpenAI's realtime models begin with."""
UNKNOWN_MODEL = ApiError(404, "There is no such model here; leave it out.", "model", "model_not_found")


@router.websocket("/v1/realtime")
async def realtime(websocket: WebSocket, model: str | None = None) -> None:
    """Serve one session."""
    service = service_of(websocket)
    service.check_ready()
    if len(service.sessions) >= service.settings.max_sessions:
        message = "All sessions are taken; try again later."
        raise ApiError(429, message, code="session_limit_reached", headers={"Retry-After": "10"})
    config = _config(service)
    config.update(getattr(websocket.state, "session", {}))
    session = Session(websocket, service, client_of(websocket), config, silero())
    service.sessions.add(session)  # before anything is waited for: a burst does not get past the limit
    try:
        await accept(websocket)
        if not _means_ours(service, model):
            await session.send(events.error(UNKNOWN_MODEL))
            await websocket.close(1008)
            return
        with contextlib.suppress(WebSocketDisconnect, TimeoutError):  # it has left, or does not read
            await session.run()
    finally:
        service.sessions.discard(session)


def _config(service: VoiceService) -> SessionConfig:
    return SessionConfig(service.names.voices[0])


def _means_ours(service: VoiceService, model: str | None) -> bool:
    names = service.names
    return not model or model in (*names.chats, *names.models) or model.startswith(MODELS)


class ExpiresAfter(BaseModel):
    """Seconds after the secret was made."""

    model_config = ConfigDict(strict=True)
    anchor: Literal["created_at"] = "created_at"
    seconds: Annotated[int, Field(ge=10, le=7200)] = 600


class SecretRequest(BaseModel):
    """``POST /v1/realtime/client_secrets``."""

    model_config = ConfigDict(strict=True)
    expires_after: ExpiresAfter | None = None
    session: dict[str, Any] | None = None


@secrets_router.post("/v1/realtime/client_secrets")
async def client_secret(body: SecretRequest, service: Service, client: Client) -> dict[str, Any]:
    """A key that a web page may have: it opens a realtime session, for a while."""
    asked = body.session or {}
    config = _config(service)
    config.update(asked)
    expires_at = int(time.time()) + (body.expires_after or ExpiresAfter()).seconds
    value = service.secrets.issue(client, expires_at, asked)
    model = service.names.chats[0] if service.names.chats else service.names.model
    shape = config.effective(events.new_id("session"), model, expires_at)
    return {"value": value, "expires_at": expires_at, "session": {**shape, "client_secret": None}}


@secrets_router.post("/v1/realtime/calls")
async def calls() -> None:
    """WebRTC is not spoken here."""
    raise ApiError(501, "There is no WebRTC here; connect to /v1/realtime with a WebSocket.", code="not_supported")
