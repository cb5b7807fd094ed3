"""``POST /v1/audio/speech``: text in, sound out, as bytes, as server-sent events, or as a finished file."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.sse import format_sse_event

from speech_mtp.serving.bodies import SpeechRequest, StrictRoute
from speech_mtp.serving.encoding import FORMATS, RATE, Encoder, whole
from speech_mtp.serving.errors import ApiError, internal
from speech_mtp.serving.orders import Order, order, whole_text
from speech_mtp.serving.responses import PacedResponse
from speech_mtp.serving.routes.shared import Client, ClientLeft, Service, unless_gone
from speech_mtp.serving.service import VoiceService
from speech_mtp.serving.speaking import EngineFailedError, Speaking
from speech_mtp.types import WordTime

router = APIRouter(route_class=StrictRoute)
LIVE = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", "X-Speech-MTP-Sample-Rate": str(RATE)}


@router.post("/v1/audio/speech", response_class=Response)
async def speech(body: SpeechRequest, request: Request, service: Service, client: Client) -> Response:
    """Speak a text. See docs/serving.md for the fields and the shapes of the answer."""
    asked = order(service, body, paced=body.shape == "sse" or body.stream_format is not None)
    text = whole_text(service, body.input, asked.readings)
    kind = FORMATS[asked.format].media_type
    with contextlib.suppress(ClientLeft):
        speaking = await unless_gone(request, begun(service, client, asked, text))
        if body.shape == "whole":
            data = await unless_gone(request, finished(service, speaking, asked))
            return Response(data, media_type=kind, headers=LIVE)
        stall_s = service.settings.stall_s
        if body.shape == "sse":
            usage = service.count_tokens(body.input)
            events = _events(speaking, _encoder(service, asked), asked, usage)
            return PacedResponse(events, "text/event-stream", LIVE, stall_s)
        return PacedResponse(_sound(speaking, _encoder(service, asked)), kind, LIVE, stall_s)
    return Response(status_code=499)  # nobody reads it


async def begun(service: VoiceService, client: str, asked: Order, text: str) -> Speaking:
    """An utterance of which there is a first sound. Raises ApiError for text that cannot be spoken."""
    speaking = await service.speak(client, asked.manner, len(text))
    try:
        speaking.say(text)
        speaking.end()
        await speaking.begun()
    except BaseException as error:
        speaking.cancel()
        raise told(error) if isinstance(error, Exception) else error from None
    return speaking


def told(error: Exception) -> ApiError:
    """What a client is told of an error in the middle of its work."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValueError):
        return ApiError(400, str(error), "input")
    if isinstance(error, EngineFailedError):
        return ApiError(503, "The engine had to start again; ask once more.", headers={"Retry-After": "1"})
    return internal()


async def finished(service: VoiceService, speaking: Speaking, asked: Order) -> bytes:
    """A whole file."""
    async with speaking:
        waves = [chunk.wave async for chunk in speaking]
    return await asyncio.to_thread(whole, asked.format, waves, service.sample_rate, asked.speed)


def _encoder(service: VoiceService, asked: Order) -> Encoder:
    return Encoder(asked.format, service.sample_rate, asked.speed)


async def _sound(speaking: Speaking, encoder: Encoder) -> AsyncIterator[bytes]:
    async with speaking:
        async for chunk in speaking:
            if data := encoder.push(chunk.wave):
                yield data
        yield encoder.close()


async def _events(speaking: Speaking, encoder: Encoder, asked: Order, input_tokens: int) -> AsyncIterator[bytes]:
    async with speaking:
        try:
            async for chunk in speaking:
                words = [scaled(word, asked.speed) for word in chunk.words]
                data = encoder.push(chunk.wave)
                if data or words:
                    yield _delta(data, asked, words)
            yield _delta(encoder.close(), asked, [])
        except Exception as error:
            failure = told(error)
            yield _event({"type": "speech.audio.error", "error": failure.body()})
            return
    tally = speaking.tally
    usage = {
        "input_tokens": input_tokens,
        "output_tokens": tally.frames,
        "total_tokens": input_tokens + tally.frames,
        "input_token_details": {"text_tokens": input_tokens, "audio_tokens": 0},
    }
    reason = tally.finish.reason if tally.finish else "stop"
    yield _event({"type": "speech.audio.done", "usage": usage, "finish_reason": reason})


def scaled(word: WordTime, speed: float) -> dict[str, Any]:
    """A word and its times (seconds) in sound that is ``speed`` times as fast."""
    return {"word": word.word, "start": round(word.start_s / speed, 3), "end": round(word.end_s / speed, 3)}


def _delta(data: bytes, asked: Order, words: list[dict[str, Any]]) -> bytes:
    event: dict[str, Any] = {"type": "speech.audio.delta", "audio": base64.b64encode(data).decode("ascii")}
    return _event({**event, "response_format": asked.format, **({"words": words} if words else {})})


def _event(event: dict[str, Any]) -> bytes:
    return format_sse_event(data_str=json.dumps(event), event=event["type"])
