"""Bodies of requests: strict JSON or a form, and the fields that are known; others are accepted and ignored, as
OpenAI's SDK sends what it likes."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Annotated, Any, Literal

from fastapi import Form, Request, Response, params
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, field_validator

from speech_mtp.serving.errors import ApiError

MOST_DEPTH = 32
MOST_MARKS = 2**18
"""Commas and opening brackets: a large body is a long text or a recording, not many values, which hold the loop up."""
FORM_LIMITS: Any = {"max_fields": 64, "max_files": 1, "max_part_size": 2**16}
"""Of a form's parts that are texts, and of its files, which the door limits."""
SURROGATE = re.compile("[\ud800-\udfff]")
AudioFormat = Literal["mp3", "opus", "aac", "flac", "wav", "pcm"]


def multipart() -> Any:
    """A form with a file, as the schema tells it."""
    return Form(media_type="multipart/form-data")


class VoiceId(BaseModel):
    """The object form of a voice."""

    model_config = ConfigDict(strict=True)
    id: str


class Speech(BaseModel):
    """How a text shall be spoken: the fields that one utterance, a batch's item and a socket's session share."""

    model_config = ConfigDict(strict=True, protected_namespaces=())

    model: str | None = None
    voice: str | VoiceId | None = None
    response_format: AudioFormat = "mp3"
    speed: Annotated[float, Field(ge=0.25, le=4.0, allow_inf_nan=False)] = 1.0
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    lexicon: dict[str, str] | None = None
    best_of: Annotated[int, Field(ge=1, le=8)] = 1
    instructions: Annotated[str, Field(max_length=4096)] | None = None
    ref_audio: Any = None

    @field_validator("ref_audio")
    @classmethod
    def _no_reference(cls, value: Any) -> Any:
        if value is not None:
            raise ValueError("a reference recording cannot be sent with a request, and addresses are never fetched")
        return value

    @property
    def voice_name(self) -> str | None:
        return self.voice.id if isinstance(self.voice, VoiceId) else self.voice


class SpeechRequest(Speech):
    """``POST /v1/audio/speech``. ``stream_format`` decides between bytes and events; without it ``stream`` true means
    events, false a whole file with its true size, and neither bytes as they are made."""

    input: str
    stream_format: Literal["audio", "sse"] | None = None
    stream: bool | None = None

    @property
    def shape(self) -> Literal["audio", "sse", "whole"]:
        if self.stream_format is not None:
            return self.stream_format
        return "audio" if self.stream is None else "sse" if self.stream else "whole"


class BatchRequest(Speech):
    """``POST /v1/audio/speech/batch``: what an item does not say is said for all. Items are checked one by one."""

    items: Annotated[list[dict[str, Any]], Field(min_length=1)]


class StrictRequest(Request):
    """A request whose JSON is JSON: no NaN, no depth bomb, no lone surrogate, and its content type says so."""

    async def json(self) -> Any:
        return strict_json(await self.body())

    async def stream(self) -> AsyncGenerator[bytes]:
        """The body as it comes. Raises ApiError 408 when it takes too long."""
        settings = self.app.state.service.settings
        is_form = self.headers.get("content-type", "").startswith("multipart/")
        end = asyncio.get_running_loop().time() + (settings.upload_s if is_form else settings.body_s)
        pieces = super().stream()
        while True:
            try:
                async with asyncio.timeout_at(end):
                    piece = await anext(pieces)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise ApiError(408, "The body has not come in time.") from None
            yield piece


class StrictRoute(APIRoute):
    """A route that reads its body as :class:`StrictRequest` does."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        wanted = None
        if self.body_field is not None:
            is_form = isinstance(self.body_field.field_info, params.Form)
            wanted = "multipart/form-data" if is_form else "application/json"

        async def strict(request: Request) -> Response:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if wanted not in (None, kind):
                raise ApiError(415, f"Send the body as {wanted}.")
            return await handle(StrictRequest(request.scope, request.receive))

        return strict


def strict_json(text: bytes | str) -> Any:
    """The value that ``text`` holds. Raises ApiError 400 for what is not JSON, and for what no field could mean."""
    if _marks(text) > MOST_MARKS:
        raise ApiError(400, "The body holds too many values.", code="invalid_json")
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply.", code="invalid_json") from None
    except ValueError:
        raise ApiError(400, "The body is not JSON in UTF-8.", code="invalid_json") from None
    _check(value, 0)
    return value


def _marks(text: bytes | str) -> int:
    if isinstance(text, str):
        return text.count(",") + text.count("[") + text.count("{")
    return text.count(b",") + text.count(b"[") + text.count(b"{")


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _check(value: Any, depth: int) -> None:
    if depth > MOST_DEPTH:
        raise ApiError(400, f"The body is nested more than {MOST_DEPTH} deep.", code="invalid_json")
    if isinstance(value, str):
        if not value.isascii() and SURROGATE.search(value):
            raise ApiError(400, "A text holds half of a surrogate pair, which is no character.", code="invalid_text")
    elif isinstance(value, dict):
        for key, inner in value.items():
            _check(key, depth + 1)
            _check(inner, depth + 1)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, depth + 1)


def validated(kind: type[Speech], value: Any) -> Any:
    """``value`` as a body of ``kind``. Raises RequestValidationError."""
    from pydantic import ValidationError

    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
