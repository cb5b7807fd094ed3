"""Hundreds of malformed requests for chats: a 4xx in OpenAI's shape each time, and the server serves on."""

from __future__ import annotations

import json
import random
from typing import Any

from tests.serving.chatting import HELLO, PATH, chatting
from tests.serving.test_malformed import RAW, VALUES

FIELDS = (
    "messages",
    "model",
    "modalities",
    "audio",
    "stream",
    "stream_options",
    "n",
    "stop",
    "seed",
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
)


def messages(rng: random.Random) -> Any:
    """A history in which something may be wrong."""
    return [
        {
            "role": rng.choice(("user", "user", "assistant", "tool", None, "x" * 99)),
            "content": rng.choice((*VALUES, [{"type": "text", "text": rng.choice(VALUES)}])),
            **({"audio": rng.choice(VALUES)} if rng.random() < 0.2 else {}),
        }
        for _ in range(rng.randint(0, 3))
    ]


def body(rng: random.Random) -> bytes:
    """What somebody might send; short answers, where it happens to be right."""
    if rng.random() < 0.1:
        return rng.choice(RAW)
    fields: dict[str, Any] = {"messages": HELLO if rng.random() < 0.6 else messages(rng), "max_tokens": 3}
    for _ in range(rng.randint(0, 3)):
        fields[rng.choice(FIELDS)] = rng.choice(VALUES)
    text = json.dumps(fields)
    return (text[: rng.randrange(len(text))] if rng.random() < 0.1 else text).encode()


def test_a_large_body_of_many_values_is_refused_unread() -> None:
    with chatting() as server:
        content = b'{"messages": [' + b"1," * (7 * 2**20) + b"1]}"
        answer = server.http.post(PATH, content=content, headers={"content-type": "application/json"})
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (400, "invalid_json")
        assert "too many values" in error["message"]


def test_malformed_requests() -> None:
    rng = random.Random(3)
    statuses: list[int] = []
    with chatting() as server:
        for number in range(400):
            content = body(rng)
            answer = server.http.post(PATH, content=content, headers={"content-type": "application/json"})
            statuses.append(answer.status_code)
            if answer.status_code == 200:
                continue
            about = f"{number}: {content[:300]!r} -> {answer.status_code} {answer.text[:300]}"
            assert 400 <= answer.status_code < 500, about
            error = answer.json()["error"]
            assert set(error) == {"message", "type", "param", "code"}, about
            assert error["message"], about
        good = server.post(PATH, messages=HELLO, max_tokens=3)
        assert good.status_code == 200
        assert server.service.chats.taken == server.service.admission.taken == 0
        assert server.service.engine.failures == 0
        scheduler = server.service.engine.scheduler
        assert scheduler is not None
        assert scheduler.writer is not None
        assert not scheduler.writer._placed
    assert statuses.count(400) > 200
