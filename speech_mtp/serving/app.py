"""The FastAPI app: one service, the routes that stand on it, one door before them."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from fastapi import APIRouter, FastAPI

from speech_mtp import __version__
from speech_mtp.decoding.base import DecodingRule
from speech_mtp.frontends.base import Recogniser
from speech_mtp.lm.bundle import SpeechModel
from speech_mtp.serving import errors
from speech_mtp.serving.door import Door, Pages
from speech_mtp.serving.passes import Passes
from speech_mtp.serving.routes import batch, chat, health, lists, realtime, speech, stream, transcriptions, voices
from speech_mtp.serving.service import VoiceService
from speech_mtp.serving.settings import Settings
from speech_mtp.streaming.authors import Author
from speech_mtp.streaming.conversation import Writer

ROUTERS = (
    speech.router,
    batch.router,
    stream.router,
    chat.router,
    transcriptions.router,
    voices.router,
    lists.router,
    health.router,
    realtime.router,
    realtime.secrets_router,
)


def create_app(
    model: SpeechModel,
    settings: Settings | None = None,
    make_writer: Callable[[], Writer] | None = None,
    rule: DecodingRule | None = None,
    codec_thread: bool = True,
    routers: Iterable[APIRouter] = ROUTERS,
    author: Author | None = None,
    recogniser: Recogniser | None = None,
) -> FastAPI:
    """The service of ``model`` as an ASGI app; its engine lives as long as the app's lifespan.

    ``app.state.service`` is the :class:`VoiceService` that every route asks; more ``routers`` may stand on it, and
    other apps may be mounted beside them: web pages tell ``app.state.pages`` how a browser enters, and have
    ``app.state.passes`` give it a pass.
    """
    settings = settings or Settings()
    service = VoiceService(model, settings, make_writer, rule, codec_thread, author, recogniser)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    shown: dict[str, Any] = {} if settings.docs else {"openapi_url": None, "docs_url": None, "redoc_url": None}
    app = FastAPI(
        title="speech_mtp",
        version=__version__,
        lifespan=lifespan,
        redirect_slashes=False,
        responses=errors.RESPONSES,
        **shown,
    )
    app.state.service = service
    app.state.pages, app.state.passes = Pages(), Passes(settings.keys)
    for router in routers:
        app.include_router(router)
    errors.install(app)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # its warnings hold bytes that clients sent
    app.add_middleware(
        Door,
        settings=settings,
        metrics=service.metrics,
        secrets=service.secrets,
        passes=app.state.passes,
        pages=app.state.pages,
    )
    return app
