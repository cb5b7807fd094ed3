"""What there is: voices and models, in the shapes of OpenAI and of Open WebUI."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter

from speech_mtp.serving.routes.shared import Client, Service
from speech_mtp.serving.routes.voices import shape
from speech_mtp.serving.voices import owner_of

router = APIRouter()
STARTED = int(time.time())


@router.get("/v1/audio/voices")
async def voices(service: Service, client: Client) -> dict[str, Any]:
    """The model's voices, then the other names that are understood, then the voices that the client has made."""
    names = service.names
    own = [{"id": name, "name": name, "object": "audio.voice"} for name in names.voices]
    other = [
        {"id": alias, "name": f"{alias} ({voice})", "object": "audio.voice", "alias_of": voice}
        for alias, voice in names.aliases.items()
    ]
    made = service.voices.of(owner_of(client)) if service.voices is not None else []
    return {"voices": own + other + [shape(record) for record in made]}


@router.get("/v1/audio/models")
async def audio_models(service: Service) -> dict[str, Any]:
    """The models that speak, as Open WebUI asks for them."""
    return {"models": [{"id": name, "name": name} for name in service.names.models]}


@router.get("/v1/models")
async def models(service: Service) -> dict[str, Any]:
    """The loaded model and its aliases, then what answers chats, then what recognises speech."""
    names = dict.fromkeys((*service.names.models, *service.names.chats, *service.names.listeners))
    return {"object": "list", "data": [_model(name) for name in names]}


@router.get("/v1/models/{model:path}")
async def one_model(model: str, service: Service) -> dict[str, Any]:
    """One of them."""
    if model not in (*service.names.chats, *service.names.listeners):
        service.names.check_model(model)
    return _model(model)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": STARTED, "owned_by": "speech_mtp"}


@router.get("/v1/", include_in_schema=False)
async def root() -> dict[str, str]:
    """Clients that want a warm connection ask for this."""
    return {"status": "ok"}
