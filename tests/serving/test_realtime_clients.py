"""Clients of the realtime API as they are: OpenAI's SDK, its agents in Python and, where there is Node, in JavaScript.

Every event that they are sent is checked against the SDK's own types, and has the fields that some client insists on.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import soundfile
from agents.realtime import RealtimeAgent, RealtimeRunner
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter

from speech_mtp.streaming.endpoint import Endpoint
from tests.serving.hearing import FakeRecogniser
from tests.serving.running import Running, serving
from tests.serving.talking import RATE, Loudness, Talk, speech, talking
from tests.streaming.fake_endpoint import Script, endpoint

KEY = "a-key-of-the-tests"
HEARD = "Hello there, who is it?"
ANSWER = ["The quick brown ", "fox jumps over the lazy ", "dog, and it is good."]
SAID = "".join(ANSWER)
CLIENTS = Path(__file__).parents[1] / "clients"


@contextmanager
def answering(pieces: list[str] = ANSWER) -> Iterator[Running]:
    """A server that hears one sentence and gives one answer."""
    with (
        pytest.MonkeyPatch.context() as patch,
        endpoint(Script(pieces)) as script,
        serving(author=Endpoint(script.url, "theirs"), recogniser=FakeRecogniser(HEARD)) as server,
    ):
        patch.setattr("speech_mtp.serving.routes.realtime.silero", Loudness)
        yield server


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with answering() as one:
        yield one


def test_every_event_is_one_of_the_sdks(server: Running) -> None:
    with talking(server) as talk:
        talk.next()
        talk.update(audio={"input": {"transcription": {"model": "whisper-1"}}})
        talk.send("input_audio_buffer.append", audio=speech())
        done = talk.until("response.done")["response"]
        talk.send("conversation.item.truncate", item_id=done["output"][0]["id"], content_index=0, audio_end_ms=10)
        talk.send("conversation.item.retrieve", item_id=done["output"][0]["id"])
        talk.send("conversation.item.delete", item_id=done["output"][0]["id"])
        talk.send("input_audio_buffer.clear")
        talk.until("input_audio_buffer.cleared")
        talk.say("And in writing?")
        talk.send("response.create", response={"output_modalities": ["text"]})
        talk.until("response.done")
        talk.send("unheard.of")
        talk.refused()
    check_events(talk)


def check_events(talk: Talk) -> None:
    """All of them as the types say, and with every field of :data:`NEEDED`."""
    types = TypeAdapter(RealtimeServerEvent)
    for event in talk.told:
        known = types.validate_python(event)
        assert known.type == event["type"]
        for path, value in walked(event):
            wanted = NEEDED.get(path if path in NEEDED else value.get("object", ""), ())
            assert not [name for name in wanted if name not in value], (event["type"], path, value)
    assert len({event["event_id"] for event in talk.told}) == len(talk.told)


PART = ("response_id", "item_id", "output_index", "content_index")
NEEDED: dict[str, tuple[str, ...]] = {
    "realtime.session": ("id", "model", "output_modalities", "audio", "instructions", "tools", "tool_choice"),
    "realtime.response": (
        "id",
        "status",
        "status_details",
        "output",
        "output_modalities",
        "conversation_id",
        "metadata",
        "max_output_tokens",
        "audio",
        "usage",
    ),
    "realtime.item": ("id", "type", "status", "role", "content"),
    "conversation.item.added": ("previous_item_id", "item"),
    "conversation.item.done": ("previous_item_id", "item"),
    "input_audio_buffer.committed": ("previous_item_id", "item_id"),
    "conversation.item.input_audio_transcription.completed": ("item_id", "content_index", "transcript", "usage"),
    "response.output_item.added": ("response_id", "output_index", "item"),
    "response.output_item.done": ("response_id", "output_index", "item"),
    "response.content_part.added": (*PART, "part"),
    "response.content_part.done": (*PART, "part"),
    "response.output_audio.delta": (*PART, "delta"),
    "response.output_audio.done": PART,
    "response.output_audio_transcript.delta": (*PART, "delta"),
    "response.output_audio_transcript.done": (*PART, "transcript"),
    "response.output_text.delta": (*PART, "delta"),
    "response.output_text.done": (*PART, "text"),
    "error.error": ("type", "code", "message", "param", "event_id"),
    "input_audio": ("transcript",),
}
"""What must stand in an event of a type, in an object of a kind, in an error, in a part; whatever its value."""


def walked(event: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of an event with what they are."""
    yield event["type"], event
    if "error" in event:
        yield "error.error", event["error"]
    for name in ("session", "response", "item"):
        if name in event:
            yield event[name]["object"], event[name]
    items = [event["item"]] if "item" in event else event.get("response", {}).get("output", [])
    for item in items:
        for part in item["content"]:
            yield part["type"], part


def test_openais_sdk(server: Running) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)
    with client.realtime.connect(model="gpt-realtime") as connection:
        connection.session.update(session={"type": "realtime", "output_modalities": ["audio"]})
        connection.input_audio_buffer.append(audio=speech())
        sound, text = b"", ""
        for event in connection:
            assert event.type != "error", event
            if event.type == "response.output_audio.delta":
                sound += base64.b64decode(event.delta)
            elif event.type == "response.output_audio_transcript.done":
                text = event.transcript
            elif event.type == "response.done":
                assert event.response.usage is not None
                frames = event.response.usage.output_token_details
                assert frames is not None
                assert len(sound) == (frames.audio_tokens or 0) * 960 * 2 > 0
                break
    assert text == SAID
    secret = client.realtime.client_secrets.create(session={"type": "realtime", "instructions": "Be brief."})
    assert secret.value.startswith("ek_")
    assert secret.session.type == "realtime"


def test_openais_agents_hold_a_conversation(server: Running) -> None:
    """Two turns by sound, the second when the answer to the first has been played."""
    seen: Counter[str] = Counter()
    sound = bytearray()

    async def converse() -> list[Any]:
        runner = RealtimeRunner(RealtimeAgent(name="Ours", instructions="Be brief."))
        url = f"ws://127.0.0.1:{server.port}/v1/realtime?model=gpt-realtime"
        history: list[Any] = []
        async with await runner.run(model_config={"url": url, "api_key": KEY}) as session:
            await session.send_audio(base64.b64decode(speech()))
            async for event in session:
                seen[event.type] += 1
                assert event.type != "error", event
                if event.type == "history_updated":
                    history = event.history
                elif event.type == "audio":
                    sound.extend(event.audio.data)
                elif event.type == "agent_end" and seen["agent_end"] == 1:
                    await asyncio.sleep(len(sound) / 2 / RATE)
                    await session.send_audio(base64.b64decode(speech()))
                elif event.type == "agent_end":
                    return history
        return history

    history = asyncio.run(asyncio.wait_for(converse(), 60))
    assert [(item.role, item.content[0].transcript) for item in history] == [
        ("user", HEARD),
        ("assistant", SAID),
    ] * 2
    assert seen["audio"] > 4


def test_openais_agents_interrupt() -> None:
    """Speech over an answer stops it, and what was not heard goes from the history."""

    whole = SAID * 40

    def heard(history: list[Any]) -> str:
        said = [item.content[0].transcript for item in history if item.role == "assistant" and item.content]
        return whole if not said or said[0] is None or not whole.startswith(said[0]) else said[0]

    async def interrupt(server: Running) -> str:
        runner = RealtimeRunner(RealtimeAgent(name="Ours"))
        url = f"ws://127.0.0.1:{server.port}/v1/realtime"
        async with await runner.run(model_config={"url": url, "api_key": KEY}) as session:
            await session.send_message("Tell me something long.")
            seen: Counter[str] = Counter()
            async for event in session:
                assert event.type != "error", event
                seen[event.type] += 1
                if event.type == "audio" and seen["audio"] == 6:
                    await asyncio.sleep(0.3)  # some of it is heard
                    await session.send_audio(base64.b64decode(speech(0.5, 0.0)))
                if event.type == "history_updated" and heard(event.history) != whole:  # asked for again when truncated
                    assert seen["audio_interrupted"]
                    return heard(event.history)
        return whole

    with answering(ANSWER * 40) as server:
        assert len(asyncio.run(asyncio.wait_for(interrupt(server), 60))) < len(whole) / 2
        assert server.service.admission.taken == 0


def node_with_agents() -> str:
    """Node, if it has OpenAI's agents."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("There is no Node.")
    if not (CLIENTS / "node_modules" / "@openai" / "agents-realtime").is_dir():
        pytest.skip("OpenAI's agents for Node are not installed; run `npm install` in tests/clients.")
    return node


def test_openais_agents_in_node(server: Running, tmp_path: Path) -> None:
    """A conversation by WAV; the answer comes back as one."""
    node = node_with_agents()
    question, reply = tmp_path / "question.raw", tmp_path / "reply.raw"
    question.write_bytes(base64.b64decode(speech()))
    command = [node, "conversation.mjs", f"ws://127.0.0.1:{server.port}/v1/realtime", str(question), str(reply)]
    ended = subprocess.run(command, cwd=CLIENTS, capture_output=True, text=True, timeout=90)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert told["errors"] == []
    assert told["history"] == [["user", HEARD], ["assistant", SAID]]
    sound, _ = soundfile.read(reply, samplerate=RATE, channels=1, subtype="PCM_16", format="RAW")
    assert len(sound) / RATE > 0.5


@pytest.mark.parametrize("client", ["livekit", "pipecat"])
def test_what_other_clients_send_is_understood(server: Running, client: str) -> None:
    """Messages of livekit-plugins-openai 1.8.9 and pipecat-ai 1.14.0, recorded with this server. Their sound and the
    ids of answers stand there by name; pipecat ends at any error."""
    lines = (CLIENTS / f"{client}.jsonl").read_text("utf-8").splitlines()
    sent = [json.loads(line) for line in lines]
    with talking(server) as talk:
        assert talk.next()["type"] == "session.created"
        for event, following in zip(sent, [*sent[1:], {"type": ""}], strict=True):
            filled = {**event, **({"audio": speech()} if event.get("audio") == "SPEECH" else {})}
            for name in ("item_id", "previous_item_id"):
                if filled.get(name) == "LAST_ANSWER":
                    filled[name] = talk.of("response.output_item.done")[-1]["item"]["id"]
            talk.socket.send(json.dumps(filled))
            kind = ANSWERED_BY.get(event["type"])
            if kind is not None and following["type"] != "response.cancel":
                answer = talk.until(kind)
                metadata = (event.get("response") or {}).get("metadata")
                assert metadata is None or answer["response"]["metadata"] == metadata
        talk.say("Still here?")
    assert "error" not in talk.kinds()
    assert len(talk.of("response.done")) >= 2
    assert talk.of("conversation.item.truncated")
    check_events(talk)


ANSWERED_BY = {
    "session.update": "session.updated",
    "input_audio_buffer.append": "response.done",
    "conversation.item.create": "conversation.item.done",
    "conversation.item.truncate": "conversation.item.truncated",
    "response.create": "response.done",
    "response.cancel": "response.done",
}
