"""``POST /v1/audio/transcriptions``: a recording in, what is said in it out, whole or while it is recognised."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.sse import format_sse_event

from speech_mtp.frontends.base import SAMPLE_RATE, Hint, Segment, Transcript, joined
from speech_mtp.serving import transcripts
from speech_mtp.serving.bodies import FORM_LIMITS, StrictRoute, multipart
from speech_mtp.serving.errors import ApiError, told
from speech_mtp.serving.forms import TranscriptionForm, content
from speech_mtp.serving.listening import Listening
from speech_mtp.serving.responses import PacedResponse
from speech_mtp.serving.routes.shared import Client, ClientLeft, Service, unless_gone
from speech_mtp.serving.service import VoiceService
from speech_mtp.serving.sound_in import decode, refused_as

router = APIRouter(route_class=StrictRoute)
MOST_BYTES = 25 * 2**20
LIVE = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@router.post("/v1/audio/transcriptions", response_class=Response, form_limits=FORM_LIMITS)
async def transcriptions(
    body: Annotated[TranscriptionForm, multipart()], request: Request, service: Service, client: Client
) -> Response:
    """Recognise speech. See docs/serving.md for the fields and the shapes of the answer."""
    service.check_recogniser()
    service.names.check_listener(body.model)
    data = await content(body.file, MOST_BYTES, "file")
    try:
        listening = await unless_gone(request, _begun(service, client, body, data))
        if body.stream:
            stall_s = service.settings.stall_s
            return PacedResponse(_events(listening), listening, "text/event-stream", LIVE, stall_s)
        return _whole(body, await unless_gone(request, _finished(listening)))
    except ClientLeft:
        return Response(status_code=499)  # nobody reads it


async def _begun(service: VoiceService, client: str, body: TranscriptionForm, data: bytes) -> Listening:
    """A recording of which there is a first segment, or the end. Raises ApiError for what cannot be heard."""
    words = "word" in body.timestamp_granularities
    hint = Hint(body.language_code, body.prompt, words, body.temperature)
    source = partial(decode, data, SAMPLE_RATE, service.settings.max_recording_s)
    listening = await service.hear(source, hint, client)
    try:
        with refused_as("file"):
            await listening.begun()
    except BaseException as error:
        listening.cancel()
        raise ApiError(400, str(error), "language") if isinstance(error, ValueError) else error from None
    return listening


async def _finished(listening: Listening) -> Transcript:
    async with listening:
        try:
            return await listening.transcript()
        except Exception as error:
            raise told(error) from None


def _whole(body: TranscriptionForm, transcript: Transcript) -> Response:
    """In the shape that was asked for."""
    match body.response_format:
        case "json":
            return JSONResponse(transcripts.as_json(transcript))
        case "verbose_json":
            wanted = body.timestamp_granularities or ["segment"]
            return JSONResponse(transcripts.as_verbose_json(transcript, "segment" in wanted, "word" in wanted))
        case "srt":
            return PlainTextResponse(transcripts.as_srt(transcript))
        case "vtt":
            return PlainTextResponse(transcripts.as_vtt(transcript), media_type="text/vtt")
        case "text":
            return PlainTextResponse(transcripts.as_text(transcript))


async def _events(listening: Listening) -> AsyncGenerator[bytes]:
    """The text as it is recognised, what was said is never taken back; then all of it."""
    heard: list[Segment] = []
    text = ""
    try:
        async for segment in listening:
            heard.append(segment)
            so_far = joined(heard, 0.0).text
            yield _data(transcripts.delta(so_far[len(text) :]))
            text = so_far
    except Exception as error:
        yield _data({"error": told(error).body()})
        return
    yield _data(transcripts.done(joined(heard, listening.duration_s)))
    yield _data("[DONE]")


def _data(value: dict[str, Any] | str) -> bytes:
    return format_sse_event(data_str=value if isinstance(value, str) else json.dumps(value))
