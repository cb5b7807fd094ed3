"""Speech language models on decoupled codec tokens.

The public names are imported when they are first used, so that ``import speech_mtp`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speech_mtp.codecs.base import Codec
    from speech_mtp.decoding.engine import generate
    from speech_mtp.hub import load
    from speech_mtp.lm.speech_lm import SpeechLM
    from speech_mtp.streaming.pipeline import speak

__version__ = "0.1.0"
__all__ = ["Codec", "SpeechLM", "generate", "load", "speak"]

_HOMES = {
    "Codec": "codecs.base",
    "SpeechLM": "lm.speech_lm",
    "generate": "decoding.engine",
    "load": "hub",
    "speak": "streaming.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
