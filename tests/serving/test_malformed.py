"""Hundreds of malformed requests over every path: a 4xx in OpenAI's shape each time, and the server serves on."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tests.serving.running import TEXT, Running
from tests.serving.test_speech import alike, spoken

PATHS = (
    "/v1/audio/speech",
    "/v1/audio/speech/batch",
    "/v1/models",
    "/v1/models/x",
    "/v1/audio/voices",
    "/v1/audio/models",
    "/v1/audio/speech/stream",
    "/v1/../etc/passwd",
    "/v1/%2e%2e/%00",
    "/metrics",
    "/",
    "//",
    "/v1/audio/speech/",
    "/v1/chat/completions",
    "/v1/audio/transcriptions",
    "/v1/audio/voices/x",
    "/v1/audio/voice_consents/x",
)
FIELDS = (
    "input",
    "model",
    "voice",
    "response_format",
    "speed",
    "seed",
    "lexicon",
    "stream",
    "stream_format",
    "instructions",
    "ref_audio",
    "items",
)
VALUES: tuple[Any, ...] = (
    None,
    "",
    " ",
    "\x00",
    "x" * 4097,
    "漢字",
    "🙂",
    "http://127.0.0.1/x",
    "file:///etc/passwd",
    "../../x",
    -1,
    0,
    1e308,
    2**80,
    True,
    [],
    [[]],
    {},
    {"id": None},
    {"id": "../x"},
    {"a": {"b": {"c": 1}}},
    ["x"] * 100,
)
RAW = (
    b"",
    b"{",
    b"\x00" * 50,
    b"\xff\xfe",
    b"[" * 5_000,
    b'{"a":' * 2_000,
    b'{"input": NaN}',
    b'{"input": Infinity, "speed": -Infinity}',
    b'{"input": "\\udfff"}',
    b'{"input": "' + b"a" * 2**20 + b'"}',
    b"input=Hello",
    b'{"input": "a b", "input": 5}',
)
KINDS = (
    "application/json",
    "application/json; charset=latin-1",
    "text/plain",
    "multipart/form-data",
    "",
    "\x01",
    "a" * 500,
)


def body(rng: random.Random) -> bytes:
    """Something that is wrong in at least one place, nearly always."""
    if rng.random() < 0.3:
        return rng.choice(RAW)
    fields: dict[str, Any] = {"input": "Good.", "voice": "low", "speed": 9} if rng.random() < 0.5 else {}
    for _ in range(rng.randint(1, 4)):
        fields[rng.choice(FIELDS)] = rng.choice(VALUES)
    text = json.dumps(fields)
    return (text[: rng.randrange(len(text))] if rng.random() < 0.1 else text).encode()


SPEAKABLE = ("Good.", "a b", "http://127.0.0.1/x", "file:///etc/passwd", "../../x")
"""Addresses are texts as any other where a text is asked for."""


def is_fine(content: bytes) -> bool:
    """Whether a request happens to be right."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and value.get("input") in SPEAKABLE and "speed" not in value


def malformed(server: Running, count: int, seed: int) -> None:
    rng = random.Random(seed)
    for number in range(count):
        method = rng.choice(("POST", "POST", "POST", "POST", "GET", "PUT", "DELETE", "PATCH", "OPTIONS"))
        path = rng.choice(PATHS[:2]) if rng.random() < 0.7 else rng.choice(PATHS)
        content = body(rng)
        kind = "application/json" if rng.random() < 0.7 else rng.choice(KINDS)
        headers = {"content-type": kind} if kind.isprintable() and kind else {}
        answer = server.http.request(method, path, content=content, headers=headers)
        about = f"{number}: {method} {path} {content[:200]!r} {kind!r} -> {answer.status_code} {answer.text[:300]}"
        if answer.status_code == 200:
            assert method == "GET" or is_fine(content) or b'"items"' in content, about
            continue
        assert 400 <= answer.status_code < 500, about
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}, about
        assert error["message"], about
    assert alike(server.post(input=TEXT, voice="low", response_format="pcm").content, spoken())
    assert server.service.admission.taken == 0
    assert server.service.engine.failures == 0


def test_malformed_requests(server: Running) -> None:
    malformed(server, 400, seed=1)


@pytest.mark.slow
def test_ten_thousand_malformed_requests(server: Running) -> None:
    malformed(server, 10_000, seed=2)
