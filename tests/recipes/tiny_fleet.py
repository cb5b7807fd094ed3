"""The app of a replica that the tests can afford: tiny random models that speak and answer."""

from __future__ import annotations

from typing import Any

from speech_mtp.serving.app import create_app
from speech_mtp.serving.settings import Settings
from tests.serving.chatting import own
from tests.tiny import tiny_model

KEY = "a-key-of-the-fleet"
SERVICE = Settings(keys=(KEY,), allowed_hosts=("*",), max_streams=3, max_queue=0, session_s=300.0)


def tiny_app() -> Any:
    return create_app(tiny_model(), SERVICE, **own())
