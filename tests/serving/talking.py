"""A client of the realtime socket that keeps all that it is told, and voice activity that is as loud as the sound."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from websockets.sync.client import ClientConnection, connect

from speech_mtp.serving.routes import realtime
from tests.serving.hearing import tone
from tests.serving.running import Running

RATE = 24_000


class Loudness:
    """A step is speech as far as it is loud."""

    def process_samples(self, samples: list[float]) -> float:
        return float(min(1.0, 5 * np.abs(samples).mean()))

    def reset(self) -> None:
        return


@pytest.fixture
def _by_loudness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realtime, "silero", Loudness)


def pcm(wave: Any) -> str:
    return base64.b64encode((np.asarray(wave) * 32767).astype("<i2").tobytes()).decode()


def speech(seconds: float = 1.0, silence_s: float = 0.8) -> str:
    """Somebody speaks, then is silent."""
    return pcm(np.concatenate([tone(seconds), np.zeros(int(silence_s * RATE), np.float32)]))


class Talk:
    """One session. ``told`` holds every event."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.told: list[dict[str, Any]] = []

    def send(self, kind: str, **fields: Any) -> None:
        self.socket.send(json.dumps({"type": kind, **fields}))

    def next(self, timeout_s: float = 20) -> dict[str, Any]:
        event: dict[str, Any] = json.loads(self.socket.recv(timeout_s))
        self.told.append(event)
        return event

    def until(self, kind: str, timeout_s: float = 20) -> dict[str, Any]:
        """The next event of ``kind``; those before it are kept."""
        while (event := self.next(timeout_s))["type"] != kind:
            assert event["type"] != "error", event
        return event

    def refused(self) -> dict[str, Any]:
        """The next error."""
        while (event := self.next())["type"] != "error":
            continue
        error: dict[str, Any] = event["error"]
        return error

    def update(self, **session: Any) -> dict[str, Any]:
        """Change the session; the whole of it as it is then."""
        self.send("session.update", session={"type": "realtime", **session})
        effective: dict[str, Any] = self.until("session.updated")["session"]
        return effective

    def say(self, text: str, **more: Any) -> dict[str, Any]:
        """A message in text; its item."""
        content = [{"type": "input_text", "text": text}]
        item = {"type": "message", "role": "user", "content": content, **more}
        self.send("conversation.item.create", item=item)
        added: dict[str, Any] = self.until("conversation.item.done")["item"]
        return added

    def kinds(self, since: int = 0) -> list[str]:
        """What was told, deltas of a kind once."""
        found: list[str] = []
        for event in self.told[since:]:
            if not found or found[-1] != event["type"] or not event["type"].endswith("delta"):
                found.append(event["type"])
        return found

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.told if event["type"] == kind]

    def sound(self) -> bytes:
        return b"".join(base64.b64decode(event["delta"]) for event in self.of("response.output_audio.delta"))


@contextmanager
def talking(server: Running, query: str = "", **options: Any) -> Iterator[Talk]:
    with connect(f"ws://127.0.0.1:{server.port}/v1/realtime{query}", max_size=None, **options) as socket:
        yield Talk(socket)
