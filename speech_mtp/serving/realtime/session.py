"""One realtime session: events of a client in, turns found in its sound, responses out.

Events are obeyed in the order in which they come, in one task; responses and transcriptions run beside it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect

from speech_mtp.serving.bodies import strict_json
from speech_mtp.serving.errors import ApiError, told
from speech_mtp.serving.realtime import events
from speech_mtp.serving.realtime.answers import Answers
from speech_mtp.serving.realtime.config import SessionConfig
from speech_mtp.serving.realtime.ear import Noticed, VoiceActivity
from speech_mtp.serving.realtime.hearing import Hearing
from speech_mtp.serving.realtime.items import Conversation, Item
from speech_mtp.serving.realtime.response import Asked
from speech_mtp.serving.realtime.sound import unpacked
from speech_mtp.serving.realtime.tasks import Tasks
from speech_mtp.serving.service import VoiceService

EVENTS_PER_S = 200
"""Faster ones wait."""
STEPS_AT_A_TIME = 16
"""Steps of the ear after which others have their turn."""
ECHO_S = 0.3
"""For which a loudspeaker may still be heard."""


class Session:
    """:meth:`run` it until the client leaves."""

    def __init__(
        self, websocket: WebSocket, service: VoiceService, client: str, config: SessionConfig, vad: VoiceActivity
    ) -> None:
        self.id = events.new_id("session")
        self.websocket, self.service, self.config = websocket, service, config
        self.model = service.names.chats[0] if service.names.chats else service.names.model
        self.expires_at = int(time.time() + service.settings.session_s)
        self.tasks, self.conversation = Tasks(), Conversation()
        self.answers = Answers(service, client, self.send, self.tasks)
        self.hearing = Hearing(service, client, self.conversation, self.send, self.tasks)
        self.hearing.open(config, vad)
        self._answer_soon: asyncio.Task[None] | None = None  # when a turn's words are known
        self._owed = False  # a turn was not answered, because somebody went on
        self._idle_since_ms: int | None = 0  # None: has been told already
        self._second, self._events = 0, 0
        self._sending = asyncio.Lock()

    # -- life -----------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Until the client leaves, time is over or the server stops."""
        try:
            await self.send(events.session("created", self._effective()))
            reader = self.tasks.begin(self._read())
            stopping = self.tasks.begin(self.service.draining.wait())
            session_s = self.service.settings.session_s
            await asyncio.wait({reader, stopping}, timeout=session_s, return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                reader.result()
            if stopping.done():
                await self.answers.ended()
            else:
                await self.send(events.error(ApiError(408, "The session has lasted as long as one may.")))
            await self.websocket.close(1012 if stopping.done() else 1001)
        finally:
            self.tasks.cancel()
            self.hearing.ear.close()

    async def send(self, event: events.Event) -> None:
        """One event, unless the client does not read."""
        text = json.dumps({"event_id": events.new_id("event"), **event})
        async with self._sending, asyncio.timeout(self.service.settings.stall_s):
            await self.websocket.send_text(text)

    def _effective(self) -> dict[str, Any]:
        return self.config.effective(self.id, self.model, self.expires_at)

    # -- events of the client -------------------------------------------------------------------------------------
    async def _read(self) -> None:
        while True:
            message = await self.websocket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", 1005))
            await self._not_too_fast()
            event_id = None
            try:
                event = self._parsed(message)
                event_id = event.get("event_id") if isinstance(event.get("event_id"), str) else None
                await self._obey(event)
            except WebSocketDisconnect:
                raise
            except Exception as error:
                await self.send(events.error(told(error), event_id))

    async def _not_too_fast(self) -> None:
        now = time.monotonic()
        if int(now) != self._second:
            self._second, self._events = int(now), 0
        self._events += 1
        if self._events > EVENTS_PER_S:
            await asyncio.sleep(self._second + 1 - now)

    def _parsed(self, message: Mapping[str, Any]) -> dict[str, Any]:
        text = message.get("text")
        if text is None:
            raise ApiError(400, "Events are texts, not bytes.", None, "unknown_or_invalid_event")
        event = strict_json(text)
        if not isinstance(event, dict) or not isinstance(event.get("type"), str):
            raise ApiError(400, "An event is an object with a type.", "type", "unknown_or_invalid_event")
        return event

    async def _obey(self, event: dict[str, Any]) -> None:
        match event["type"]:
            case "session.update":
                await self._update(event)
            case "input_audio_buffer.append":
                await self._hear(unpacked(event.get("audio"), "audio"))
            case "input_audio_buffer.commit":
                await self.hearing.commit()
            case "input_audio_buffer.clear":
                self.hearing.clear()
                await self.send(events.cleared())
            case "conversation.item.create":
                await self._create_item(event)
            case "conversation.item.retrieve":
                item = self.conversation.find(event.get("item_id"), "item_retrieve_invalid_item_id")
                await self.send(events.item_retrieved(item.shape()))
            case "conversation.item.truncate":
                await self._truncate(event)
            case "conversation.item.delete":
                self.conversation.delete(event.get("item_id"))
                await self.send(events.item_deleted(event["item_id"]))
            case "response.create":
                await self._create_response(event.get("response"))
            case "response.cancel":
                self.answers.cancel(event.get("response_id"))
            case "output_audio_buffer.clear":
                message = "There is no output buffer on a WebSocket; cancel the response and drop what was sent."
                raise ApiError(400, message, "type", "invalid_event_for_transport")
            case _:
                raise ApiError(400, "There is no such event.", "type", "unknown_or_invalid_event")

    async def _update(self, event: dict[str, Any]) -> None:
        config = self.config.copied()
        config.update(event.get("session"))
        self.config = config
        self.hearing.configure(config)
        await self.send(events.session("updated", self._effective()))

    async def _create_item(self, event: dict[str, Any]) -> None:
        previous = event.get("previous_item_id")
        item, sound = self.hearing.read(event.get("item"))
        before = self.conversation.add(item, previous if isinstance(previous, str) else None)
        if sound is not None:
            self.hearing.listen(item, sound)
        await self.hearing.tell(item, before)

    async def _truncate(self, event: dict[str, Any]) -> None:
        code = "item_truncate_invalid_item_id"
        item = self.conversation.find(event.get("item_id"), code)
        if item.role != "assistant" or not item.spoken:
            raise ApiError(400, "Only what the assistant has spoken can be truncated.", "item_id", code)
        end_ms = event.get("audio_end_ms")
        if not isinstance(end_ms, int | float) or isinstance(end_ms, bool) or end_ms < 0:
            raise ApiError(400, "audio_end_ms is a number of milliseconds from 0.", "audio_end_ms", "invalid_value")
        await self.send(events.item_truncated(item.id, item.cut(end_ms)))

    # -- turns ----------------------------------------------------------------------------------------------------
    @property
    def _turns(self) -> dict[str, Any]:
        return self.config.turn_detection or {}

    async def _hear(self, data: bytes) -> None:
        self._guard()
        for number, noticed in enumerate(self.hearing.ear.push(data)):
            if noticed is not None:
                await self._notice(noticed)
            if number % STEPS_AT_A_TIME == STEPS_AT_A_TIME - 1:
                await asyncio.sleep(0)
                self._guard()
        await self._look_whether_idle()

    def _guard(self) -> None:
        """Speech must be clearer, or is not heard, while what comes may be our own."""
        ear, playing = self.hearing.ear, self.answers.plays(ECHO_S)
        ear.guarded, ear.muted = playing, playing and self.config.extension["half_duplex"]

    async def _notice(self, noticed: Noticed) -> None:
        match noticed.change:
            case "started":
                await self._turn_began(noticed.at_ms)
            case "paused":
                self.hearing.turn_paused()
            case "resumed":
                self.hearing.turn_resumed()
            case "stopped":
                await self._turn_ended(noticed.at_ms)

    async def _turn_began(self, at_ms: int) -> None:
        self._idle_since_ms = None
        await self.hearing.turn_began(at_ms)
        if self._turns.get("interrupt_response"):
            if self._answer_soon is not None and self._answer_soon.cancel():
                self._owed = True
            self._owed |= self.answers.interrupt()

    async def _turn_ended(self, at_ms: int) -> None:
        item = await self.hearing.turn_ended(at_ms)
        self._idle_since_ms = self.hearing.ear.now_ms
        if self._turns.get("create_response"):
            self._answer_soon = self.tasks.begin(self._answer_when_heard(item))

    async def _answer_when_heard(self, item: Item) -> None:
        """Respond to what was said; noise without a word is not answered, but what it interrupted is. Without
        ``interrupt_response`` the answer that is being made is heard to its end before."""
        assert item.hearing is not None
        await asyncio.wait({item.hearing})
        if not (item.text or self._owed):
            return
        if not self._turns.get("interrupt_response"):
            await self.answers.ended()
        await self._answer()

    async def _look_whether_idle(self) -> None:
        """After a long silence, which is told once, the assistant goes on by itself."""
        limit, ear = self._turns.get("idle_timeout_ms"), self.hearing.ear
        if limit is None or self._idle_since_ms is None or ear.speaking:
            return
        if self.answers.busy or self.answers.plays():
            self._idle_since_ms = ear.now_ms
        elif ear.now_ms - self._idle_since_ms >= limit:
            since_ms, self._idle_since_ms = self._idle_since_ms, None
            await self.hearing.stay_silent(since_ms)
            await self._answer()

    # -- responses ------------------------------------------------------------------------------------------------
    async def _answer(self) -> None:
        """Respond to the conversation."""
        await self.answers.begin(Asked(self.config.copied(), self.conversation.items, self.conversation))
        self._owed = False

    async def _create_response(self, asked: Any) -> None:
        asked = {} if asked is None else asked
        if not isinstance(asked, dict):
            raise ApiError(400, "response must be an object.", "response", "invalid_value")
        in_band = asked.get("conversation") != "none"
        if in_band:
            self.answers.check_free()
            self._owed = False
        metadata = asked.get("metadata")
        items = self._input_of(asked["input"]) if isinstance(asked.get("input"), list) else self.conversation.items
        await self.answers.begin(
            Asked(
                self.config.for_response(asked),
                items,
                self.conversation if in_band else None,
                metadata if isinstance(metadata, dict) else None,
            )
        )

    def _input_of(self, asked: list[Any]) -> list[Item]:
        """The items that a response shall answer instead of the conversation."""
        found = []
        for one in asked:
            if isinstance(one, dict) and one.get("type") == "item_reference":
                found.append(self.conversation.find(one.get("id")))
                continue
            item, sound = self.hearing.read(one)
            if sound is not None:
                self.hearing.listen(item, sound)
            found.append(item)
        return found
