"""Clients that keep a voice service busy and listen as players do: what a user of a loaded server would notice.

Each client asks again as soon as it has heard its answer out. It plays what comes from 80 ms after the first sound on;
sound that is late then is a gap. It knows the service's addresses and nothing of its inside.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from statistics import quantiles
from typing import Any

import soundfile
import soxr

from speech_mtp import plugins
from speech_mtp.serving.encoding import RATE, levels
from speech_mtp.serving.speaking import CUSHION_S
from speech_mtp.streaming.playback import Playback

KINDS = ("speech", "chat", "realtime", "spoken")
"""``realtime`` asks in writing, ``spoken`` with a recording, at the pace of a microphone."""
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
ANSWER_S = 120
"""Within which one must have come."""
LEAVE_S = 6.0
"""After which a client that leaves has left."""
PIECE_MS = 40
"""Of a recording that are sent at a time."""


@dataclass
class Answer:
    """One answer as a player hears it. It was ``asked`` for at that time (``time.monotonic``); a question that is
    spoken, when the server noticed its end. ``left``: the client went away in the middle."""

    kind: str
    asked: float
    playback: Playback = field(default_factory=lambda: Playback(CUSHION_S))
    error: str | None = None
    left: bool = False

    def hear(self, num_bytes: int) -> None:
        """So many bytes of pcm have come."""
        self.playback.hear(time.monotonic(), num_bytes / 2 / RATE)

    @property
    def first_s(self) -> float | None:
        """From asking to the first sound."""
        return None if self.playback.first is None else self.playback.first - self.asked

    async def play_out(self) -> None:
        """Wait until all of it has been played."""
        await asyncio.sleep(max(0.0, self.playback.until - time.monotonic()))


@dataclass
class Load:
    """``url`` of a service as in ``http://127.0.0.1:8000``, and a ``key``, if it wants one; ``question`` is what is
    spoken to it: pcm. Of the answers, ``leave`` (0 to 1) are left in the middle, at any time up to ``LEAVE_S``."""

    url: str
    key: str | None = None
    question: bytes = b""
    leave: float = 0.0
    answers: list[Answer] = field(default_factory=list)

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
        sound: Callable[[Any, int, Answer], AsyncIterator[int]] = {
            "speech": self._speech,
            "chat": self._chat,
            "realtime": self._realtime,
            "spoken": self._spoken,
        }[kind]
        luck = random.Random(number)
        for turn in count(number):
            if turn > number and time.monotonic() >= end:
                return
            answer = Answer(kind, time.monotonic())
            self.answers.append(answer)
            leaving = luck.random() < self.leave
            try:
                async with asyncio.timeout(luck.uniform(0, LEAVE_S) if leaving else ANSWER_S):
                    async for num_bytes in sound(http, turn, answer):
                        answer.hear(num_bytes)
                if answer.first_s is None:
                    raise RuntimeError("an answer without sound")
                await answer.play_out()
            except Exception as error:
                answer.left = leaving and isinstance(error, TimeoutError)
                if answer.left:
                    continue
                answer.error = f"{type(error).__name__}: {error}"
                await asyncio.sleep(1)

    async def _speech(self, http: Any, turn: int, answer: Answer) -> AsyncIterator[int]:
        body = {"input": TEXTS[turn % len(TEXTS)], "response_format": "pcm", "stream_format": "audio"}
        async with http.stream("POST", "/v1/audio/speech", json=body) as response:
            if response.status_code != 200:
                raise RuntimeError(f"status {response.status_code}")
            async for data in response.aiter_raw():
                yield len(data)

    async def _chat(self, http: Any, turn: int, answer: Answer) -> AsyncIterator[int]:
        body = {
            "messages": [{"role": "user", "content": QUESTIONS[turn % len(QUESTIONS)]}],
            "modalities": ["text", "audio"],
            "audio": {"voice": "alloy", "format": "pcm16"},
            "stream": True,
            "max_completion_tokens": LONGEST,
        }
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise RuntimeError(f"status {response.status_code}")
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise RuntimeError(chunk["error"]["message"])
                for choice in chunk["choices"]:
                    data = (choice["delta"].get("audio") or {}).get("data")
                    if data:
                        yield len(base64.b64decode(data))

    async def _realtime(self, http: Any, turn: int, answer: Answer) -> AsyncIterator[int]:
        content = [{"type": "input_text", "text": QUESTIONS[turn % len(QUESTIONS)]}]
        item = {"type": "message", "role": "user", "content": content}
        async with self._session() as socket:
            await socket.send(json.dumps({"type": "conversation.item.create", "item": item}))
            await socket.send(json.dumps({"type": "response.create", "response": {"max_output_tokens": LONGEST}}))
            async for event in _until_done(socket):
                if event["type"] == "response.output_audio.delta":
                    yield len(base64.b64decode(event["delta"]))

    async def _spoken(self, http: Any, turn: int, answer: Answer) -> AsyncIterator[int]:
        async with self._session() as socket:
            session = {"type": "realtime", "max_output_tokens": LONGEST}
            await socket.send(json.dumps({"type": "session.update", "session": session}))
            speaking = asyncio.ensure_future(self._speak(socket))
            try:
                async for event in _until_done(socket):
                    if event["type"] == "input_audio_buffer.speech_stopped":
                        answer.asked = time.monotonic()
                    elif event["type"] == "response.output_audio.delta":
                        yield len(base64.b64decode(event["delta"]))
            finally:
                speaking.cancel()

    async def _speak(self, socket: Any) -> None:
        """The question, then silence, as they would come from a microphone."""
        began, silence = time.monotonic(), bytes(2 * RATE * PIECE_MS // 1000)
        for number in count():
            piece = self.question[number * len(silence) : (number + 1) * len(silence)] or silence
            audio = base64.b64encode(piece).decode("ascii")
            await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
            await asyncio.sleep(began + (number + 1) * PIECE_MS / 1000 - time.monotonic())

    def _session(self) -> Any:
        websockets: Any = plugins.require("websockets.asyncio.client", "serve")
        url = self.url.replace("http", "ws", 1) + "/v1/realtime"
        return websockets.connect(url, additional_headers=self._headers(), max_size=None)


async def _until_done(socket: Any) -> AsyncIterator[dict[str, Any]]:
    """The events of a session up to the end of a response. Raises RuntimeError for what the server refuses."""
    async for message in socket:
        event = json.loads(message)
        yield event
        if event["type"] == "error":
            raise RuntimeError(event["error"]["message"])
        if event["type"] == "response.done":
            if event["response"]["status"] == "failed":
                raise RuntimeError(event["response"]["status_details"]["error"]["message"])
            return


def mixed(mix: Sequence[str], streams: int) -> list[str]:
    """The kinds of ``streams`` clients: those of ``mix`` in turn. Raises ValueError for an unknown one."""
    unknown = next((kind for kind in mix if kind not in KINDS), None)
    if unknown is not None or not mix:
        raise ValueError(f"The mix holds {unknown!r}; {plugins.nearest(str(unknown), list(KINDS))}.")
    return [mix[i % len(mix)] for i in range(streams)]


def rows(streams: int, seconds: float, answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """What ``streams`` clients heard, by kind: milliseconds to the first sound, gaps, seconds of sound."""
    return [_row(streams, seconds, kind, [one for one in answers if one.kind == kind]) for kind in KINDS]


def _row(streams: int, seconds: float, kind: str, answers: list[Answer]) -> dict[str, Any]:
    first = sorted(1000 * one.first_s for one in answers if one.first_s is not None)
    return {
        "streams": streams,
        "kind": kind,
        "answers": len(answers),
        "left": sum(one.left for one in answers),
        "errors": sum(one.error is not None for one in answers),
        "first_audio_ms_p50": _quantile(first, 50),
        "first_audio_ms_p95": _quantile(first, 95),
        "gaps": sum(one.playback.gaps for one in answers),
        "sound_s": round(sum(one.playback.heard_s for one in answers), 1),
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
        load.answers = []
        await load.run(mixed(mix, streams), seconds)
        found += [row for row in rows(streams, seconds, load.answers) if row["answers"]]
    return found


def recording(path: Path) -> bytes:
    """A file of sound as pcm. Raises ValueError for what is none."""
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, RuntimeError) as error:
        raise ValueError(f"{path} is no sound that can be read: {error}") from None
    return levels(soxr.resample(samples.mean(1), rate, RATE)).tobytes()
