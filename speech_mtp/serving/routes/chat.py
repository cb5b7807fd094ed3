"""``POST /v1/chat/completions``: a history in, an answer out, as text or as text and the sound of it, whole or as it is
made."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from fastapi.sse import format_sse_event

from speech_mtp.serving.answering import Answering
from speech_mtp.serving.bodies import Speech, StrictRoute
from speech_mtp.serving.chat_bodies import ChatRequest, history
from speech_mtp.serving.completion import Completion, told
from speech_mtp.serving.encoding import Encoder, whole
from speech_mtp.serving.orders import order
from speech_mtp.serving.responses import PacedResponse
from speech_mtp.serving.routes.shared import Client, ClientLeft, Service, unless_gone
from speech_mtp.serving.routes.speech import LIVE
from speech_mtp.serving.service import VoiceService
from speech_mtp.serving.speaking import Manner
from speech_mtp.streaming.stream import Chunk

router = APIRouter(route_class=StrictRoute)
FORMATS = {"pcm16": "pcm"}


@router.post("/v1/chat/completions", response_class=Response)
async def chat(body: ChatRequest, request: Request, service: Service, client: Client) -> Response:
    """Answer a chat. See docs/serving.md for the fields and the shapes of the answer."""
    began = time.monotonic()
    with contextlib.suppress(ClientLeft):
        answering = await unless_gone(request, begun(service, client, body))
        answer = Completion(service, client, body, answering, began)
        headers = {**LIVE, "X-Speech-MTP-Dropped-Messages": str(answering.question.dropped)}
        if body.stream:
            return PacedResponse(_events(answer), answering, "text/event-stream", headers, service.settings.stall_s)
        return JSONResponse(await unless_gone(request, _finished(answer)), headers=headers)
    return Response(status_code=499)  # nobody reads it


async def begun(service: VoiceService, client: str, body: ChatRequest) -> Answering:
    """An answer of which there is a first text. Raises ApiError for what cannot be answered."""
    try:
        service.check_ready()
        if service.author is not None:
            service.names.check_chat_model(body.model)
        manner = _manner(service, client, body)
        messages = await history(service, client, body.messages)
        answering = await service.answer(client, await service.question(messages, body.wish), manner)
    except Exception as error:
        raise told(error) from None
    try:
        await answering.begun()
    except BaseException as error:
        answering.cancel()
        raise told(error) if isinstance(error, Exception) else error from None
    return answering


def _manner(service: VoiceService, client: str, body: ChatRequest) -> Manner | None:
    """How the answer is spoken; None if it is not."""
    if not body.spoken or body.audio is None:
        return None
    speech = Speech(voice=body.audio.voice_name, response_format="pcm", seed=body.seed)
    return order(service, client, speech, paced=bool(body.stream)).manner


async def _finished(answer: Completion) -> dict[str, Any]:
    """The whole answer. Raises ApiError for one that broke off."""
    waves = []
    async with answer.answering:
        try:
            async for item in _made(answer):
                if isinstance(item, Chunk):
                    waves.append(item.wave)
        except Exception as error:
            raise told(error) from None
    audio = answer.body.audio
    if not answer.body.spoken or audio is None:
        return answer.whole()
    name = FORMATS.get(audio.format, audio.format)
    sound = await asyncio.to_thread(whole, name, waves, answer.service.sample_rate)
    return answer.whole(base64.b64encode(sound).decode("ascii"))


async def _events(answer: Completion) -> AsyncGenerator[bytes]:
    """Chunks in the order in which they are made, then how it ended."""
    encoder = Encoder("pcm", answer.service.sample_rate)
    async with answer.answering:
        yield _data(answer.opening())
        try:
            async for item in _made(answer):
                if not isinstance(item, Chunk):
                    yield _data(answer.text_chunk(item))
                elif sound := encoder.push(item.wave):
                    yield _data(answer.sound_chunk(sound))
            if rest := encoder.close():
                yield _data(answer.sound_chunk(rest))
        except Exception as error:
            yield _data({"error": told(error).body()})
            return
        for chunk in answer.ending():
            yield _data(chunk)
    yield _data("[DONE]")


async def _made(answer: Completion) -> AsyncIterator[str | Chunk]:
    """Text and sound as they come; what was written is kept."""
    async for piece in answer.answering.pieces():
        answer.take(piece)
        yield piece


def _data(value: dict[str, Any] | str) -> bytes:
    return format_sse_event(data_str=value if isinstance(value, str) else json.dumps(value))
