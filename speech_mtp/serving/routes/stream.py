"""``WS /v1/audio/speech/stream``: pieces of text in, sound and word times out while the text is still being written.

Client: ``session.config`` (settings that stay), ``input.text`` (more text), ``input.done`` (the utterance ends here,
the socket stays), ``input.cancel`` (say no more of it), ``session.close``. Server: ``audio.start``, binary frames of
sound, ``audio.words``, ``audio.done``, ``session.done``, ``error``. Utterances are spoken one after the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable
from typing import Any

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from fastapi.exceptions import RequestValidationError

from speech_mtp.serving.bodies import strict_json, validated
from speech_mtp.serving.encoding import RATE
from speech_mtp.serving.errors import ApiError, from_validation, told
from speech_mtp.serving.orders import order
from speech_mtp.serving.routes.shared import accept, client_of, service_of
from speech_mtp.serving.routes.speech import scaled
from speech_mtp.serving.service import VoiceService
from speech_mtp.serving.speaking import Speaking
from speech_mtp.serving.utterance import Config, Sound, Utterance, feed

router = APIRouter()
MOST_WAITING = 16
"""Utterances that may wait for the one that is spoken."""
MOST_MESSAGE = 2**20


@router.websocket("/v1/audio/speech/stream")
async def stream(websocket: WebSocket) -> None:
    """Serve one session."""
    service = service_of(websocket)
    service.check_ready()
    await accept(websocket)
    session = Session(websocket, service, client_of(websocket))
    service.sessions.add(session)
    try:
        with contextlib.suppress(WebSocketDisconnect, TimeoutError):  # it has left, or does not read
            await session.run()
    finally:
        service.sessions.discard(session)


class Session:
    """One socket: messages are read while utterances are spoken."""

    def __init__(self, websocket: WebSocket, service: VoiceService, client: str) -> None:
        self.websocket, self.service, self.client = websocket, service, client
        self.config = Config()
        self.open: Utterance | None = None  # whose text has not ended
        self.queue: asyncio.Queue[Utterance | None] = asyncio.Queue()
        self.current: Utterance | None = None  # which is spoken
        self.spoken = 0

    async def run(self) -> None:
        """Until the client leaves, closes, idles or does not read, or until the server stops."""
        reader = asyncio.ensure_future(self._read())
        speaker = asyncio.ensure_future(self._speak_all())
        stopping = asyncio.ensure_future(self.service.draining.wait())
        try:
            await asyncio.wait({reader, speaker, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                reader.result()
            elif stopping.done() and not speaker.done():
                reader.cancel()
                if self.open is not None:
                    self.open.end()
            self.queue.put_nowait(None)
            await speaker
            await self._part(stopping.done())
        finally:
            for task in (reader, speaker, stopping):
                task.cancel()
            if self.current is not None:
                self.current.cancel()

    async def _part(self, stopping: bool) -> None:
        if stopping:
            await self._send_error(ApiError(503, "The server is shutting down; connect again."))
        await self._send({"type": "session.done", "total_utterances": self.spoken, "total_sentences": self.spoken})
        await self.websocket.close(1012 if stopping else 1000)

    # -- what comes ---------------------------------------------------------------------------------------------
    async def _read(self) -> None:
        """Until the client says ``session.close`` or idles."""
        while True:
            try:
                async with asyncio.timeout(self.service.settings.idle_s):
                    message = await self.websocket.receive()
            except TimeoutError:
                if self._busy():
                    continue
                await self._send_error(ApiError(408, "Nothing has come for too long; the session ends."))
                self._give_up()
                return
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            try:
                if not self._take(message):
                    return
            except RequestValidationError as error:
                await self._send_error(from_validation(list(error.errors())))
            except ApiError as error:
                await self._send_error(error)

    def _busy(self) -> bool:
        """Whether something is spoken whose text is all there."""
        return (self.current is not None and self.current.ended) or not self.queue.empty()

    def _give_up(self) -> None:
        if self.open is not None:
            self.open.cancel()
            self.open = None

    def _take(self, message: Any) -> bool:
        """Do what a message says; False at ``session.close``."""
        text = message.get("text")
        if text is None:
            raise ApiError(400, "Send messages of JSON text, not of bytes.")
        if len(text) > MOST_MESSAGE:
            raise ApiError(413, "The message is too large; send less at a time.")
        event = strict_json(text)
        kind = event.get("type") if isinstance(event, dict) else None
        if kind == "session.config":
            self._configure(event)
        elif kind == "input.text":
            self._input(event)
        elif kind == "input.done":
            if self.open is not None:
                self.open.end()
                self.open = None
        elif kind == "input.cancel":
            for utterance in filter(None, (self.open, self.current)):
                utterance.cancel()
            self.open = None
        elif kind == "session.close":
            if self.open is not None:
                self.open.end()
            return False
        else:
            raise ApiError(400, "This type of message is not known.", "type", "unknown_or_invalid_event")
        return True

    def _configure(self, event: dict[str, Any]) -> None:
        if self.open is not None:
            raise ApiError(400, "The settings can be changed between utterances only; send input.done before.", "type")
        known = self.config.model_dump(exclude_unset=True)
        config: Config = validated(Config, {**known, **{k: v for k, v in event.items() if k != "type"}})
        order(self.service, self.client, config, paced=True)
        self.config = config

    def _input(self, event: dict[str, Any]) -> None:
        text = event.get("text")
        if not isinstance(text, str):
            raise ApiError(400, "input.text needs a text.", "text")
        if self.open is None:
            if self.queue.qsize() >= MOST_WAITING:
                raise ApiError(429, f"{MOST_WAITING} utterances wait already; let some be spoken first.")
            self.open = Utterance(order(self.service, self.client, self.config, paced=True), self.config)
            self.queue.put_nowait(self.open)
        try:
            self.open.push(text)
        except ApiError:
            self.open = None
            raise

    # -- what goes ----------------------------------------------------------------------------------------------
    async def _speak_all(self) -> None:
        while (utterance := await self.queue.get()) is not None:
            self.current = utterance
            try:
                await self._speak(utterance)
            except ApiError as error:
                utterance.cancel()
                await self._send_error(error)
            self.current = None

    async def _speak(self, utterance: Utterance) -> None:
        first = await utterance.texts.get()
        while first is not None and not first.strip():
            first = await utterance.texts.get()
        if first is None or utterance.cancelled:
            return
        speaking = await self.service.speak(self.client, utterance.asked.manner)
        utterance.speaking = speaking
        feeder = asyncio.ensure_future(feed(utterance, speaking, first))
        try:
            async with speaking:
                await self._tell(utterance, speaking)
        finally:
            feeder.cancel()
            if self.open is utterance:
                self.open = None

    async def _tell(self, utterance: Utterance, speaking: Speaking) -> None:
        """Send what is made of one utterance, and how it ended."""
        about = {"utterance_index": self.spoken, "sentence_index": 0}
        asked = utterance.asked
        start = {"type": "audio.start", **about, "format": asked.format, "sample_rate": RATE}
        sink = Sound(self._send_bytes, utterance, self.service.sample_rate)
        failure: ApiError | None = None
        try:
            await speaking.begun()
            if not utterance.cancelled:
                await self._send(start)
            async for chunk in speaking:
                await sink.push(chunk.wave)
                if chunk.words and utterance.config.word_timestamps:
                    words = [scaled(word, asked.speed) for word in chunk.words]
                    await self._send({"type": "audio.words", **about, "words": words})
            await sink.close()
        except (WebSocketDisconnect, TimeoutError):
            raise
        except Exception as error:
            failure = told(error)
            await self._send_error(failure)
        self.spoken += 1
        reason = speaking.tally.finish.reason if speaking.tally.finish is not None else speaking.outcome
        done = {"type": "audio.done", **about, "total_bytes": sink.total, "error": failure is not None}
        await self._send({**done, "finish_reason": reason})

    async def _send(self, event: dict[str, Any]) -> None:
        await self._within(self.websocket.send_text(json.dumps(event)))

    async def _send_bytes(self, data: bytes) -> None:
        await self._within(self.websocket.send_bytes(data))

    async def _send_error(self, error: ApiError) -> None:
        await self._send({"type": "error", "error": error.body(), "message": error.message})

    async def _within(self, sending: Awaitable[None]) -> None:
        """Send, unless the client does not read."""
        async with asyncio.timeout(self.service.settings.stall_s):
            await sending
