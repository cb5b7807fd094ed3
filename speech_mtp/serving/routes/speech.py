"""``POST /v1/audio/speech``: text in, sound out, as bytes, as server-sent events, or as a finished file."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.sse import format_sse_event

from speech_mtp.serving.bodies import SpeechRequest, StrictRoute
from speech_mtp.serving.encoding import FORMATS, RATE, Encoder, whole
from speech_mtp.serving.errors import told
from speech_mtp.serving.orders import Order, order, whole_text
from speech_mtp.serving.responses import PacedResponse
from speech_mtp.serving.routes.shared import Client, ClientLeft, Service, unless_gone
from speech_mtp.serving.service import VoiceService
from speech_mtp.serving.speaking import Speaking
from speech_mtp.types import WordTime

router = APIRouter(route_class=StrictRoute)
LIVE = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no", "X-Speech-MTP-Sample-Rate": str(RATE)}


@router.post("/v1/audio/speech", response_class=Response)
async def speech(body: SpeechRequest, request: Request, service: Service, client: Client) -> Response:
    """Speak a text. See docs/serving.md for the fields and the shapes of the answer."""
    asked = order(service, client, body, paced=body.shape == "sse" or body.stream_format is not None)
    text = whole_text(service, body.input, asked.readings)
    try:
        speaking = await unless_gone(request, begun(service, client, asked, text))
    except ClientLeft:
        return Response(status_code=499)  # nobody reads it
    try:
        return await _answer(request, service, body, asked, speaking)
    except BaseException:
        speaking.cancel()
        raise


async def _answer(
    request: Request, service: VoiceService, body: SpeechRequest, asked: Order, speaking: Speaking
) -> Response:
    """What is spoken, in the shape that was asked for."""
    kind, stall_s = FORMATS[asked.format].media_type, service.settings.stall_s
    if body.shape == "whole":
        try:
            data = await unless_gone(request, finished(service, speaking, asked))
        except ClientLeft:
            return Response(status_code=499)
        return Response(data, media_type=kind, headers=LIVE)
    encoder = Encoder(asked.format, service.sample_rate, asked.speed)
    if body.shape == "sse":
        events = _events(speaking, encoder, asked, service.count_tokens(body.input))
        return PacedResponse(events, speaking, "text/event-stream", LIVE, stall_s)
    return PacedResponse(_sound(speaking, encoder), speaking, kind, LIVE, stall_s)


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


async def finished(service: VoiceService, speaking: Speaking, asked: Order) -> bytes:
    """A whole file."""
    async with speaking:
        try:
            waves = [chunk.wave async for chunk in speaking]
        except Exception as error:
            raise told(error) from None
    return await asyncio.to_thread(whole, asked.format, waves, service.sample_rate, asked.speed)


async def _sound(speaking: Speaking, encoder: Encoder) -> AsyncIterator[bytes]:
    async for chunk in speaking:
        if data := encoder.push(chunk.wave):
            yield data
    yield encoder.close()


async def _events(speaking: Speaking, encoder: Encoder, asked: Order, input_tokens: int) -> AsyncIterator[bytes]:
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
