"""``POST /v1/audio/speech/batch``: several texts, each a finished file; one bad item fails alone."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import secrets
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from speech_mtp.serving.bodies import BatchRequest, SpeechRequest, StrictRoute, validated
from speech_mtp.serving.encoding import FORMATS
from speech_mtp.serving.errors import ApiError, from_validation, told
from speech_mtp.serving.orders import order, whole_text
from speech_mtp.serving.routes.shared import Client, ClientLeft, Service, unless_gone
from speech_mtp.serving.routes.speech import begun, finished
from speech_mtp.serving.service import VoiceService

router = APIRouter(route_class=StrictRoute)
AT_ONCE = 2
"""Items of one batch that are spoken at a time, so that a batch leaves slots to others."""


@router.post("/v1/audio/speech/batch")
async def batch(body: BatchRequest, request: Request, service: Service, client: Client) -> Response:
    """Speak every item."""
    most = service.settings.max_batch
    if len(body.items) > most:
        raise ApiError(400, f"The batch has {len(body.items)} items, more than the {most} allowed; split it.", "items")
    common = body.model_dump(exclude_unset=True, exclude={"items"})
    with contextlib.suppress(ClientLeft):
        results = await unless_gone(request, _all(service, client, [{**common, **item} for item in body.items]))
        failed = sum(result["status"] == "error" for result in results)
        counts = {"total": len(results), "succeeded": len(results) - failed, "failed": failed}
        return JSONResponse({"id": f"batch_{secrets.token_hex(8)}", "results": results, **counts})
    return Response(status_code=499)  # nobody reads it


async def _all(service: VoiceService, client: str, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    service.check_ready()
    turns = asyncio.Semaphore(AT_ONCE)

    async def one(index: int, item: dict[str, Any]) -> dict[str, Any]:
        async with turns:
            try:
                return {"index": index, "status": "success", **await _spoken(service, client, item)}
            except RequestValidationError as error:
                return {"index": index, "status": "error", "error": from_validation(list(error.errors())).body()}
            except Exception as error:
                return {"index": index, "status": "error", "error": told(error).body()}

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(i, item)) for i, item in enumerate(items)]
    return [task.result() for task in tasks]


async def _spoken(service: VoiceService, client: str, item: dict[str, Any]) -> dict[str, Any]:
    body: SpeechRequest = validated(SpeechRequest, item)
    asked = order(service, client, body, paced=False)
    text = whole_text(service, body.input, asked.readings)
    speaking = await begun(service, client, asked, text)
    data = await finished(service, speaking, asked)
    tokens, frames = service.count_tokens(body.input), speaking.tally.frames
    return {
        "audio_data": base64.b64encode(data).decode("ascii"),
        "media_type": FORMATS[asked.format].media_type,
        "usage": {"input_tokens": tokens, "output_tokens": frames, "total_tokens": tokens + frames},
    }
