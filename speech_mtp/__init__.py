"""Speech language models on decoupled codec tokens.

The public names are imported when they are first used, so that ``import speech_mtp`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from speech_mtp.codecs.base import Codec
    from speech_mtp.decoding.engine import generate
    from speech_mtp.decoding.text import generate as generate_text
    from speech_mtp.hub import load
    from speech_mtp.lm.speech_lm import SpeechLM
    from speech_mtp.lm.text_lm import TextLM
    from speech_mtp.streaming.pipeline import speak

__version__ = "0.1.0"
__all__ = ["Codec", "SpeechLM", "TextLM", "generate", "generate_text", "load", "speak"]

_HOMES = {
    "Codec": "codecs.base.Codec",
    "SpeechLM": "lm.speech_lm.SpeechLM",
    "TextLM": "lm.text_lm.TextLM",
    "generate": "decoding.engine.generate",
    "generate_text": "decoding.text.generate",
    "load": "hub.load",
    "speak": "streaming.pipeline.speak",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _HOMES[name].rpartition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
