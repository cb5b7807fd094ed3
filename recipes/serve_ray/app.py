"""The voice service on Ray Serve: the same app in every replica, with an engine of its own.

Every replica admits as many streams as one server does. Ray spreads requests over the replicas, adds replicas while
streams take most of the slots, and removes one when its last stream has ended. This module knows neither the routes nor
how speech is made.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy, BackpressureConfig
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from speech_mtp.cli.serve import LOG_FORMAT, load_author, load_recogniser
from speech_mtp.cli.shared import load_model
from speech_mtp.serving.app import create_app
from speech_mtp.serving.settings import Settings, read_keys

STRICT = ConfigDict(extra="forbid", frozen=True)
BUSY = 0.7
"""Share of a replica's slots that streams may take, on average, before there is another replica."""
SPARE_REQUESTS = 64
"""For lists, health, text sockets that are silent, and for those who are told to come back."""
LONGEST_TEXT_S = 1200.0
"""For which the longest text that a request may hold can be spoken, at the slowest speed."""
LAST_BYTES_S = 30.0


class Scaling(BaseModel):
    """How many replicas, and how soon that changes; Ray's own names."""

    model_config = STRICT

    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(4, ge=1)
    upscale_delay_s: float = 5.0
    downscale_delay_s: float = 600.0
    look_back_period_s: float = 20.0


class Fleet(BaseModel):
    """``args`` of ``serve.yaml``: what ``speech-mtp serve`` is told by its options, and the replicas.

    ``num_cpus`` of a replica are for Ray's book-keeping; its ``threads`` are what torch uses. ``service`` are the
    settings of one replica; its keys come from ``api_key_file`` alone, so that they stand in no configuration that Ray
    shows.
    """

    model_config = STRICT
    model: str = "tiny-en"
    threads: int = 1
    llm: str | None = None
    asr: str | None = None
    api_key_file: Path
    num_cpus: float = 1.0
    scaling: Scaling = Scaling()
    service: Settings = Settings(allowed_hosts=("*",), session_s=900.0)


class Streams:
    """Autoscaling policy: as many replicas as all streams need, those that wait too, if each has
    ``streams_per_replica``."""

    def __init__(self, streams_per_replica: float) -> None:
        self._streams_per_replica = streams_per_replica

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        streams = (context.aggregated_metrics or {}).get("streams", {})
        return max(1, math.ceil(sum(streams.values()) / self._streams_per_replica)), {}


class Replica:
    """What Ray asks of a replica; :func:`serve.ingress` gives it ``app``."""

    app: Any  # of create_app, whose state.service is the VoiceService

    async def check_health(self) -> None:
        """Return when the engine is warm: Ray sends nothing to a replica before. Raises RuntimeError when it has
        ended: Ray starts another replica."""
        await self.app.state.service.warm.wait()
        if not self.app.state.service.engine.alive:
            raise RuntimeError("The engine has ended; the log of this replica tells why.")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What :class:`Streams` counts."""
        admission = self.app.state.service.admission
        return {"streams": admission.taken + admission.waiting}


class Named:
    """Middleware: the header ``X-Replica`` tells which replica has answered."""

    def __init__(self, app: ASGIApp, name: str) -> None:
        self.app, self.name = app, name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def named(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.accept", "websocket.http.response.start"):
                message.setdefault("headers", [])
                MutableHeaders(scope=message)["x-replica"] = self.name
            await send(message)

        await self.app(scope, receive, named)


def application(
    make_app: Callable[[], Any], service: Settings, scaling: Scaling, num_cpus: float = 1.0
) -> serve.Application:
    """Replicas of the app that ``make_app`` returns (made by :func:`speech_mtp.serving.app.create_app` with the
    settings ``service``); it is called in each of them."""

    def named_app() -> Any:
        app = make_app()
        app.add_middleware(Named, name=serve.get_replica_context().replica_id.unique_id)
        return app

    policy = AutoscalingPolicy(
        policy_function=Streams, policy_kwargs={"streams_per_replica": BUSY * service.max_streams}
    )
    deployment = serve.deployment(
        name="voice",
        max_ongoing_requests=most_requests(service),
        max_queued_requests=SPARE_REQUESTS,
        backpressure_config=BackpressureConfig(status_code=429, retry_after_s=5),
        graceful_shutdown_timeout_s=longest_s(service) + LAST_BYTES_S,
        autoscaling_config=AutoscalingConfig(**scaling.model_dump(), policy=policy),
        ray_actor_options={"num_cpus": num_cpus},
    )
    return deployment(serve.ingress(named_app)(Replica)).bind()


def most_requests(service: Settings) -> int:
    """Requests that a replica may hold: more than it admits, because the app's own refusals say when to come back."""
    lines = 3 * service.max_queue  # for speech, chats and recordings
    return service.max_streams + service.max_chats + service.max_sessions + lines + SPARE_REQUESTS


def longest_s(service: Settings) -> float:
    """For how long a stream of a text that is known, or a session, may go on."""
    return max(service.session_s, LONGEST_TEXT_S)


def build(args: dict[str, Any]) -> serve.Application:
    """``import_path`` of ``serve.yaml``. Raises ValidationError for an unknown or wrong setting."""
    fleet = Fleet.model_validate(args)
    service = dataclasses.replace(fleet.service, keys=read_keys(fleet.api_key_file))
    return application(partial(_app, fleet, service), service, fleet.scaling, fleet.num_cpus)


def _app(fleet: Fleet, service: Settings) -> Any:
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    recogniser = load_recogniser(fleet.asr, None)
    author, make_writer = load_author(fleet.llm, None, None, None, fleet.threads, always_drafts=False)
    model = load_model(fleet.model, None, None, fleet.threads, None)
    return create_app(model, service, make_writer, author=author, recogniser=recogniser)
