"""A server whose chats are answered by a tiny language model with a head, or by an endpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from speech_mtp.decoding import catalogue
from speech_mtp.serving.settings import Settings
from speech_mtp.streaming.authors import OwnAuthor
from speech_mtp.streaming.conversation import Writer
from tests.serving.running import Running, serving
from tests.text_tiny import tiny_head, tiny_text_lm

LM = tiny_text_lm()
HELLO = [{"role": "user", "content": "Hello there!"}]
PATH = "/v1/chat/completions"


def own() -> dict[str, Any]:
    """What makes a server answer chats itself."""
    return {
        "author": OwnAuthor("tiny-chat", LM.tokenizer, LM.max_positions),
        "make_writer": lambda: Writer(LM, catalogue.build("chain", tiny_head(LM))),
    }


@contextmanager
def chatting(settings: Settings | None = None, **more: Any) -> Iterator[Running]:
    with serving(settings, **{**own(), **more}) as running:
        yield running


def events(text: str) -> list[dict[str, Any]]:
    """The chunks of a stream, which must be framed as OpenAI's are."""
    lines = [line for line in text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
