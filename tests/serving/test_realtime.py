"""The realtime socket: order and fields of its events, turns, interruptions, and what is refused."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from speech_mtp.decoding import catalogue
from speech_mtp.serving.settings import Settings
from speech_mtp.streaming.chat import Chat
from tests.serving.chatting import LM, chatting
from tests.serving.hearing import FakeRecogniser, tone
from tests.serving.running import Running, serving, until
from tests.serving.talking import RATE, Loudness, Talk, pcm, speech, talking

HEARD = "Hello there!"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("speech_mtp.serving.routes.realtime.silero", Loudness)
        with chatting(recogniser=FakeRecogniser(HEARD)) as running:
            yield running


@pytest.fixture
def talk(server: Running) -> Iterator[Talk]:
    with talking(server) as one:
        assert one.next()["type"] == "session.created"
        yield one


def test_a_written_question_is_answered_in_sound(talk: Talk) -> None:
    talk.update(max_output_tokens=20)
    item = talk.say("Hello there!")
    assert item["content"] == [{"type": "input_text", "text": "Hello there!"}]
    begin = len(talk.told)
    talk.send("response.create", response={"metadata": {"client_event_id": "mine"}})
    done = talk.until("response.done")["response"]
    assert talk.kinds(begin)[:4] == [
        "response.created",
        "response.output_item.added",
        "conversation.item.added",
        "response.content_part.added",
    ]
    assert talk.kinds(begin)[-6:] == [
        "response.output_audio.done",
        "response.output_audio_transcript.done",
        "response.content_part.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.done",
    ]
    created = talk.of("response.created")[0]["response"]
    assert created["metadata"] == {"client_event_id": "mine"} == done["metadata"]
    assert (created["status"], done["status"]) == ("in_progress", "incomplete")  # 20 tokens were all it might write
    assert done["status_details"] == {"type": "incomplete", "reason": "max_output_tokens"}
    said = "".join(event["delta"] for event in talk.of("response.output_audio_transcript.delta"))
    assert said == "".join(Chat(LM, catalogue.build("vanilla"), max_new_tokens=20).ask("Hello there!"))
    assert done["output"][0]["content"] == [{"type": "output_audio", "transcript": said}]
    frames = done["usage"]["output_token_details"]["audio_tokens"]
    assert len(talk.sound()) == frames * 960 * 2
