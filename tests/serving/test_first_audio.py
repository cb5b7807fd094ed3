"""How much the service adds to the engine's own time to first audio, with the shipped model: run it with ``-s``."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time

import pytest

from speech_mtp import hub
from speech_mtp.lm.bundle import SpeechModel
from speech_mtp.streaming.scheduler import Scheduler
from tests.serving.running import serving

TEXT = "Hello there. It is good to hear you again after all this time."
ASK = """
import json, sys, time
import httpx2
client = httpx2.Client(base_url=sys.argv[1], timeout=60)
body = {"input": sys.argv[2], "response_format": "pcm", "stream_format": "audio"}
for _ in range(int(sys.argv[3])):
    began = time.perf_counter()
    with client.stream("POST", "/v1/audio/speech", json=body) as answer:
        parts = answer.iter_raw()
        next(parts)
        print(json.dumps(time.perf_counter() - began), flush=True)
        for _ in parts:
            pass
"""


def own(model: SpeechModel, codec_thread: bool) -> float:
    """Seconds from a text to its first sound, from the scheduler alone."""
    scheduler = Scheduler(model, codec_thread=codec_thread)
    began = time.perf_counter()
    stream = scheduler.speak()
    stream.push(TEXT)
    stream.finish_text()
    first = None
    while scheduler.tick():
        if first is None and any(len(chunk.wave) for chunk in stream.take()):
            first = time.perf_counter() - began
    scheduler.close()
    assert first is not None
    return first


@pytest.mark.slow
def test_the_service_adds_little_to_the_first_audio() -> None:
    model = hub.load("tiny-en", threads=1)
    own(model, True)
    with serving(model=model) as server:
        alone, asked = [], []
        command = [sys.executable, "-c", ASK, server.url, TEXT]
        for _ in range(5):  # in turns, as the machine may be busy
            alone += [own(model, True) for _ in range(5)]
            out = subprocess.run([*command, "6"], capture_output=True, text=True, check=True).stdout
            asked += [json.loads(line) for line in out.splitlines()][1:]  # the first makes the connection
        steps = server.service.engine.steps
    figures = {
        "engine_ms": 1000 * statistics.median(alone),
        "http_ms": 1000 * statistics.median(asked),
        "engine_min_ms": 1000 * min(alone),
        "http_min_ms": 1000 * min(asked),
        "requests": len(asked),
    }
    print(json.dumps({key: round(value, 1) for key, value in figures.items()}), steps)
    assert figures["http_ms"] - figures["engine_ms"] < 40
