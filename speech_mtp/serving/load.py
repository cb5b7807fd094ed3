"""Clients that keep a voice service busy and listen as players do: what a user of a loaded server would notice.

Each client asks again as soon as it has heard its answer out. It plays what comes from 80 ms after the first sound on;
sound that is late then is a gap. It knows the service's addresses and nothing of its inside.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from statistics import quantiles
from typing import Any

from speech_mtp import plugins
from speech_mtp.serving.encoding import RATE
from speech_mtp.serving.speaking import CUSHION_S

KINDS = ("speech", "chat", "realtime")
TEXTS = (
    "Good morning, did you sleep well? The train to the city leaves at nine from platform three, so there is no hurry.",
    "The library has moved to the old town hall. It opens at ten, and on Fridays it stays open until eight.",
    "I have read your letter twice, and I think that you are right. Let us meet next week and talk about it.",
)
QUESTIONS = (
    "Why is the sky blue?",
    "What can I cook with rice and eggs?",
    "Tell me about the moon.",
    "How do I learn to swim?",
)
LONGEST = 60
"""Tokens of an answer."""


@dataclass
class Playback:
    """One answer as a player hears it. Seconds; ``first_s`` from the request to the first sound."""

    kind: str
    asked: float
    first_s: float | None = None
    heard_s: float = 0.0
    gaps: int = 0
    error: str | None = None
    _until: float = 0.0

    def hear(self, num_bytes: int) -> None:
        """So many bytes of pcm have come."""
        now = time.monotonic()
        if self.first_s is None:
            self.first_s = now - self.asked
            self._until = now + CUSHION_S
        elif now > self._until:
            self.gaps += 1
        seconds = num_bytes / 2 / RATE
        self._until = max(self._until, now) + seconds
        self.heard_s += seconds

    async def play_out(self) -> None:
        """Wait until all of it has been played."""
        await asyncio.sleep(max(0.0, self._until - time.monotonic()))


@dataclass
class Load:
    """``url`` of a service as in ``http://127.0.0.1:8000``, and a ``key``, if it wants one."""

    url: str
    key: str | None = None
    played: list[Playback] = field(default_factory=list)

    async def run(self, kinds: Sequence[str], seconds: float) -> None:
        """A client of each of ``kinds``; they begin within a second, and ask for no second answer after ``seconds``."""
        httpx = plugins.require("httpx", "serve")
        end = time.monotonic() + seconds
        async with httpx.AsyncClient(base_url=self.url, headers=self._headers(), timeout=60) as http:
            clients = [self._client(http, kind, i, i / len(kinds), end) for i, kind in enumerate(kinds)]
            await asyncio.gather(*clients)

    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"} if self.key else {}

    async def _client(self, http: Any, kind: str, number: int, delay_s: float, end: float) -> None:
        await asyncio.sleep(delay_s)
        sound: Callable[[Any, int], AsyncIterator[int]] = {
            "speech": self._speech,
            "chat": self._chat,
            "realtime": self._realtime,
        }[kind]
        for turn in count(number):
            if turn > number and time.monotonic() >= end:
                return
            playback = Playback(kind, time.monotonic())
            self.played.append(playback)
            try:
                async for num_bytes in sound(http, turn):
                    playback.hear(num_bytes)
                await playback.play_out()
            except Exception as error:
                playback.error = f"{type(error).__name__}: {error}"
                await asyncio.sleep(1)

    async def _speech(self, http: Any, turn: int) -> AsyncIterator[int]:
        body = {"input": TEXTS[turn % len(TEXTS)], "response_format": "pcm", "stream_format": "audio"}
        async with http.stream("POST", "/v1/audio/speech", json=body) as answer:
            if answer.status_code != 200:
                raise RuntimeError(f"status {answer.status_code}")
            async for data in answer.aiter_raw():
                yield len(data)

    async def _chat(self, http: Any, turn: int) -> AsyncIterator[int]:
        body = {
            "messages": [{"role": "user", "content": QUESTIONS[turn % len(QUESTIONS)]}],
            "modalities": ["text", "audio"],
            "audio": {"voice": "alloy", "format": "pcm16"},
            "stream": True,
            "max_completion_tokens": LONGEST,
        }
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                raise RuntimeError(f"status {answer.status_code}")
            async for line in answer.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise RuntimeError(chunk["error"]["message"])
                for choice in chunk["choices"]:
                    data = (choice["delta"].get("audio") or {}).get("data")
                    if data:
                        yield len(base64.b64decode(data))

    async def _realtime(self, http: Any, turn: int) -> AsyncIterator[int]:
        websockets: Any = plugins.require("websockets.asyncio.client", "serve")
        url = self.url.replace("http", "ws", 1) + "/v1/realtime"
        content = [{"type": "input_text", "text": QUESTIONS[turn % len(QUESTIONS)]}]
        item = {"type": "message", "role": "user", "content": content}
        async with websockets.connect(url, additional_headers=self._headers(), max_size=None) as socket:
            await socket.send(json.dumps({"type": "conversation.item.create", "item": item}))
            await socket.send(json.dumps({"type": "response.create", "response": {"max_output_tokens": LONGEST}}))
            async for message in socket:
                event = json.loads(message)
                if event["type"] == "response.output_audio.delta":
                    yield len(base64.b64decode(event["delta"]))
                elif event["type"] == "error":
                    raise RuntimeError(event["error"]["message"])
                elif event["type"] == "response.done":
                    if event["response"]["status"] == "failed":
                        raise RuntimeError(event["response"]["status_details"]["error"]["message"])
                    return


def mixed(mix: Sequence[str], streams: int) -> list[str]:
    """The kinds of ``streams`` clients: those of ``mix`` in turn. Raises ValueError for an unknown one."""
    unknown = next((kind for kind in mix if kind not in KINDS), None)
    if unknown is not None or not mix:
        raise ValueError(f"The mix holds {unknown!r}; {plugins.nearest(str(unknown), list(KINDS))}.")
    return [mix[i % len(mix)] for i in range(streams)]


def rows(streams: int, seconds: float, played: Sequence[Playback]) -> list[dict[str, Any]]:
    """What ``streams`` clients heard, by kind: milliseconds to the first sound, gaps, seconds of sound."""
    return [_row(streams, seconds, kind, [p for p in played if p.kind == kind]) for kind in KINDS]


def _row(streams: int, seconds: float, kind: str, played: list[Playback]) -> dict[str, Any]:
    first = sorted(1000 * p.first_s for p in played if p.first_s is not None)
    return {
        "streams": streams,
        "kind": kind,
        "answers": len(played),
        "errors": sum(p.error is not None for p in played),
        "first_audio_ms_p50": _quantile(first, 50),
        "first_audio_ms_p95": _quantile(first, 95),
        "gaps": sum(p.gaps for p in played),
        "sound_s": round(sum(p.heard_s for p in played), 1),
        "seconds": seconds,
    }


def _quantile(values: list[float], percent: int) -> float | None:
    if len(values) < 2:
        return round(values[0], 1) if values else None
    return round(quantiles(values, n=100, method="inclusive")[percent - 1], 1)


async def measure(load: Load, mix: Sequence[str], counts: Sequence[int], seconds: float) -> list[dict[str, Any]]:
    """Rows for each number of clients, one number after the other."""
    found = []
    for streams in counts:
        load.played = []
        await load.run(mixed(mix, streams), seconds)
        found += [row for row in rows(streams, seconds, load.played) if row["answers"]]
    return found
