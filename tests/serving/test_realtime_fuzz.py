"""A thousand realtime events that no client should send: the session tells what is wrong and goes on."""

from __future__ import annotations

import base64
import json
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from websockets.sync.client import connect

from speech_mtp.serving.routes import realtime
from speech_mtp.serving.settings import Settings
from tests.serving.chatting import chatting
from tests.serving.hearing import FakeRecogniser, tone
from tests.serving.running import Running, until
from tests.serving.talking import Loudness, Talk, pcm, talking

AUDIO = {"input": {"turn_detection": {"type": "server_vad"}}, "output": {"voice": "alloy", "speed": 1.0}}
MESSAGE = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello there!"}]}
VALID: list[dict[str, Any]] = [
    {"type": "session.update", "session": {"type": "realtime", "instructions": "Be kind.", "audio": AUDIO}},
    {"type": "input_audio_buffer.append", "audio": pcm(tone(0.2))},
    {"type": "input_audio_buffer.commit"},
    {"type": "input_audio_buffer.clear"},
    {"type": "conversation.item.create", "item": {"id": "mine", **MESSAGE}},
    {"type": "conversation.item.retrieve", "item_id": "mine"},
    {"type": "conversation.item.truncate", "item_id": "mine", "content_index": 0, "audio_end_ms": 100},
    {"type": "conversation.item.delete", "item_id": "mine"},
    {"type": "response.create", "response": {"max_output_tokens": 5, "output_modalities": ["audio"]}},
    {"type": "response.create", "response": {"conversation": "none", "input": [MESSAGE], "max_output_tokens": 5}},
    {"type": "response.cancel"},
    {"type": "output_audio_buffer.clear"},
]
TEXTS = [json.dumps(event) for event in VALID]
ODD: list[Any] = [None, True, -1, 2**70, 1e308, float("nan"), float("inf"), "", "\ud800", "x" * 100_000]


def nested(depth: int) -> Any:
    value: Any = "deep"
    for _ in range(depth):
        value = [value]
    return value


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in ``value``, with each of its keys."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


def mutated(rng: random.Random) -> str:
    """A valid event with one to three places spoilt."""
    event = json.loads(rng.choice(TEXTS))
    for _ in range(rng.randint(1, 3)):
        holder, key = rng.choice(list(places(event)) or [(event, "type")])
        if rng.random() < 0.25:
            del holder[key]
        else:
            holder[key] = rng.choice(
                [*ODD, [], {}, nested(rng.choice([3, 500])), rng.random(), json.loads(rng.choice(TEXTS))]
            )
        if not event:
            break
    return json.dumps(event)


def random_sound(rng: random.Random) -> str:
    """Bytes that are no speech, some in a base64 that is none."""
    audio = base64.b64encode(rng.randbytes(rng.randint(0, 5000))).decode()
    return json.dumps(
        {"type": "input_audio_buffer.append", "audio": rng.choice([audio, audio[:-1], audio + "=", "é*"])}
    )


def no_event(rng: random.Random) -> str | bytes:
    return rng.choice(
        [rng.randbytes(50), b"", "", "{", "null", "[]", '{"type": NaN}', "[" * 5000, '{"type": "\\ud800"}']
    )


MAKERS: list[Callable[[random.Random], str | bytes]] = [
    lambda rng: rng.choice(TEXTS),  # in any order
    mutated,
    mutated,
    mutated,
    random_sound,
    no_event,
]


def pester(server: Running, seed: int, number: int, told: list[dict[str, Any]]) -> None:
    """Send ``number`` events in one session, which must still be there then; all that it says goes to ``told``."""
    rng = random.Random(seed)
    url = f"ws://127.0.0.1:{server.port}/v1/realtime"
    with connect(url, max_size=None, max_queue=None) as socket:
        for _ in range(number):
            socket.send(rng.choice(MAKERS)(rng))
        socket.send(json.dumps({"type": "conversation.item.delete", "item_id": "none", "event_id": "the-last"}))
        while not told or told[-1].get("error", {}).get("event_id") != "the-last":
            told.append(json.loads(socket.recv(60)))


def test_the_same_seed_makes_the_same_events() -> None:
    made = [[MAKERS[i % len(MAKERS)](rng) for i in range(60)] for rng in (random.Random(3), random.Random(3))]
    assert made[0] == made[1]
    assert len({str(event) for event in made[0]}) > 40


@pytest.mark.slow
def test_strange_events_are_told_and_the_session_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realtime, "silero", Loudness)
    told: list[list[dict[str, Any]]] = [[] for _ in range(5)]
    with chatting(Settings(max_streams=3), recogniser=FakeRecogniser("Hello there!")) as server:
        pester(server, 0, 200, told[0])
        threads = [threading.Thread(target=pester, args=(server, i, 200, told[i])) for i in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [one[-1].get("error", {}).get("event_id") for one in told] == ["the-last"] * 5
        errors = [event["error"] for one in told for event in one if event["type"] == "error"]
        assert len(errors) > 300
        assert [error for error in errors if error["type"] == "server_error"] == []
        until(lambda: server.service.admission.taken == 0 and server.service.chats.taken == 0)
        assert server.service.engine.failures == 0
        with talking(server) as talk:
            assert spoken_answer(talk)


def spoken_answer(talk: Talk) -> bytes:
    talk.say("Hello there!")
    talk.send("response.create", response={"max_output_tokens": 10})
    talk.until("response.done")
    return talk.sound()
