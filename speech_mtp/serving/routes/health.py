"""``/health``, ``/health/ready``, ``/metrics``: is it alive, does it take work, how does it do."""

from __future__ import annotations

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse

from speech_mtp.serving.errors import ApiError
from speech_mtp.serving.metrics import CONTENT_TYPE
from speech_mtp.serving.routes.shared import Service

router = APIRouter()


@router.get("/health")
@router.get("/health/live", include_in_schema=False)
async def health(service: Service) -> dict[str, str]:
    """The process answers, and its engine has not died."""
    if service.engine.error is not None:
        raise ApiError(503, "The engine could not be started; the log tells why.")
    return {"status": "healthy"}


@router.get("/health/ready")
async def ready(service: Service) -> dict[str, str]:
    """It is warm and takes work."""
    service.check_ready()
    return {"status": "ready"}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(service: Service) -> Response:
    """Figures for Prometheus."""
    return Response(service.figures(), media_type=CONTENT_TYPE)
