"""Long work: a thousand requests of all kinds, many left in the middle, and the memory stays flat; many streams at once
with the shipped model."""

from __future__ import annotations

import json
import random
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from speech_mtp import hub
from speech_mtp.serving.encoding import FORMATS
from speech_mtp.serving.settings import Settings
from tests.serving.chatting import chatting
from tests.serving.hearing import FakeRecogniser
from tests.serving.running import LONG, TEXT, Running, serving, until
from tests.serving.talking import Loudness, speech, talking
from tests.serving.test_speech import alike, spoken
from tests.serving.test_stream_socket import send, socket


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def visit(server: Running, rng: random.Random) -> None:
    """One request, as some client might make it."""
    kind = rng.random()
    body: dict[str, Any] = {
        "input": LONG[: rng.randint(20, 200)],
        "response_format": rng.choice(list(FORMATS)),
        "speed": rng.choice([1, 1, 0.5, 2]),
    }
    if kind < 0.15:
        with socket(server) as one:
            send(one, "input.text", text=LONG[:200])
            one.recv(timeout=20)
    elif kind < 0.4:
        with server.http.stream("POST", "/v1/audio/speech", json={**body, "stream_format": "sse"}) as answer:
            parts = answer.iter_raw()
            next(parts)  # and it leaves
    elif kind < 0.5:
        server.post("/v1/audio/speech/batch", items=[body, {"input": ""}])
    elif kind < 0.6:
        server.post(input="", voice=rng.random())
    else:
        server.post(**body, stream=rng.choice([None, True, False]))


@pytest.mark.slow
def test_a_thousand_requests_leave_nothing_behind() -> None:
    rng = random.Random(1)
    with serving(Settings(max_streams=4)) as server:
        for _ in range(200):
            visit(server, rng)
        before = resident_mb()
        for _ in range(1000):
            visit(server, rng)
        until(lambda: server.service.admission.taken == 0)
        grown = resident_mb() - before
        print(f"resident memory {before:.1f} MB, grown by {grown:.1f} MB over 1,000 requests")
        assert grown < 50
        assert server.service.speaking == set()
        assert server.service.sessions == set()
        assert server.service.engine.failures == 0
        assert alike(server.post(input=TEXT, voice="low", response_format="pcm").content, spoken())


@pytest.mark.slow
def test_a_hundred_turns_of_voice_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversations of twenty turns, spoken, written, interrupted, cancelled; voices made and deleted between them."""
    monkeypatch.setattr("speech_mtp.serving.routes.realtime.silero", Loudness)
    rng = random.Random(2)
    with chatting(recogniser=FakeRecogniser("Hello there!")) as server:
        converse(server, rng)
        before = resident_mb()
        for _ in range(5):
            converse(server, rng)
        until(lambda: not server.service.sessions)
        until(lambda: server.service.chats.taken == server.service.admission.taken == 0)
        grown = resident_mb() - before
        print(f"resident memory {before:.1f} MB, grown by {grown:.1f} MB over 100 turns")
        assert grown < 50
        assert not server.service.speaking
        assert not server.service.answering
        assert server.service.engine.failures == 0


def converse(server: Running, rng: random.Random, turns: int = 20) -> None:
    with talking(server) as talk:
        talk.update(max_output_tokens=40)
        for _ in range(turns):
            if rng.random() < 0.5:
                talk.send("input_audio_buffer.append", audio=speech(0.5))
            else:
                talk.say("Hello there!")
                talk.send("response.create")
            created = talk.until("response.created")["response"]
            if rng.random() < 0.3:
                talk.send("response.cancel", response_id=created["id"])
            done = talk.until("response.done")["response"]
            failure = (done["status_details"] or {}).get("error", {}).get("message", "")
            assert done["status"] != "failed" or "cannot be read" in failure, done  # a tiny model writes any letters
            for item in done["output"]:
                if rng.random() < 0.3:
                    end_ms = rng.randint(0, 500)
                    talk.send("conversation.item.truncate", item_id=item["id"], content_index=0, audio_end_ms=end_ms)
                    talk.until("conversation.item.truncated")


@pytest.mark.slow
@pytest.mark.parametrize("streams", [1, 4, 8])
def test_many_streams_with_the_shipped_model(streams: int) -> None:
    """Prints the figures; whether there are underruns depends on what else the machine does."""
    text = "Hello there. It is good to hear you again after all this time. How have you been, and where did you go?"
    with serving(Settings(max_streams=streams), hub.load("tiny-en", threads=1)) as server:
        first: list[float] = []

        def listen(i: int) -> None:
            time.sleep(i / streams)
            body = {"input": text, "response_format": "pcm", "stream_format": "audio", "seed": i}
            began = time.monotonic()
            with httpx2.stream("POST", f"{server.url}/v1/audio/speech", json=body, timeout=120) as answer:
                parts = answer.iter_raw()
                next(parts)
                first.append(1000 * (time.monotonic() - began))
                for _ in parts:
                    continue

        threads = [threading.Thread(target=listen, args=(i,)) for i in range(streams)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        figures = {
            "streams": streams,
            "first_audio_ms": sorted(round(ms) for ms in first),
            "underruns": server.metric("speech_mtp_underruns_total"),
            "audio_s": round(server.metric("speech_mtp_audio_seconds_total"), 1),
            "busy_s": round(server.service.engine.busy_s, 1),
        }
        print(json.dumps(figures))
        assert len(first) == streams
        assert server.service.engine.failures == 0
