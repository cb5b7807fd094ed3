"""One realtime session: events of a client in, turns found in its sound, responses out.

Events are obeyed in the order in which they come, in one task; responses and transcriptions run beside it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Coroutine, Mapping
from typing import Any

from fastapi import WebSocket, WebSocketDisconnect

from speech_mtp.frontends.base import Hint
from speech_mtp.serving.bodies import strict_json
from speech_mtp.serving.errors import ApiError, told
from speech_mtp.serving.realtime import events
from speech_mtp.serving.realtime.config import SessionConfig
from speech_mtp.serving.realtime.ear import HEARING_RATE, MOST_S, Ear, Noticed, VoiceActivity
from speech_mtp.serving.realtime.items import Conversation, Item, item_of
from speech_mtp.serving.realtime.response import Asked, Response
from speech_mtp.serving.realtime.sound import Receiver, Samples, unpacked, wire
from speech_mtp.serving.realtime.turns import TurnDetector
from speech_mtp.serving.service import VoiceService

EVENTS_PER_S = 200
"""Faster ones wait."""
STEPS_AT_A_TIME = 16
"""Steps of the ear after which others have their turn."""
ECHO_S = 0.3
"""For which a loudspeaker may still be heard."""
LEAST_COMMIT_MS = 100
MOST_EARLY_MS = 15_000
"""Of sound whose words are looked for in every pause: of a longer turn at its end."""


class Session:
    """:meth:`run` it until the client leaves."""

    def __init__(
        self, websocket: WebSocket, service: VoiceService, client: str, config: SessionConfig, vad: VoiceActivity
    ) -> None:
        self.id = events.new_id("session")
        self.websocket, self.service, self.client, self.config = websocket, service, client, config
        self.model = service.names.chats[0] if service.names.chats else service.names.model
        self.expires_at = int(time.time() + service.settings.session_s)
        self.conversation = Conversation()
        self.ear = Ear(wire(config.input_format), vad)
        self.active: Response | None = None  # of the conversation; others are out of band
        self._active_task: asyncio.Task[None] | None = None
        self._answer_soon: asyncio.Task[None] | None = None  # when a turn's words are known
        self._tasks: set[asyncio.Task[Any]] = set()
        self._turn_item: str | None = None  # of the turn that is spoken
        self._owed = False  # a turn was not answered, because somebody went on
        self._early: asyncio.Task[str] | None = None  # the words of a turn that has perhaps ended
        self._plays_until = 0.0
        self._idle_since_ms: int | None = 0  # None: has been told already
        self._second, self._events = 0, 0
        self._sending = asyncio.Lock()
        self._set_ear()

    # -- life -----------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Until the client leaves, time is over or the server stops."""
        await self.send(events.session("created", self._effective()))
        reader = self._spawn(self._read())
        stopping = self._spawn(self.service.draining.wait())
        try:
            session_s = self.service.settings.session_s
            await asyncio.wait({reader, stopping}, timeout=session_s, return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                reader.result()
            if not stopping.done():
                await self.send(events.error(ApiError(408, "The session has lasted as long as one may.")))
            elif self._active_task is not None:
                await asyncio.wait({self._active_task})
            await self.websocket.close(1012 if stopping.done() else 1001)
        finally:
            for task in list(self._tasks):
                task.cancel()

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen: whoever still wants the result is told of it, and nobody else

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
                await self._commit_by_hand()
            case "input_audio_buffer.clear":
                self.ear.clear()
                self.ear.begin_anew(wire(self.config.input_format))
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
                await self._respond_by_hand(event.get("response"))
            case "response.cancel":
                self._cancel_by_hand(event.get("response_id"))
            case "output_audio_buffer.clear":
                message = "There is no output buffer on a WebSocket; cancel the response and drop what was sent."
                raise ApiError(400, message, "type", "invalid_event_for_transport")
            case _:
                raise ApiError(400, "There is no such event.", "type", "unknown_or_invalid_event")

    async def _update(self, event: dict[str, Any]) -> None:
        config = self.config.copied()
        config.update(event.get("session"))
        self.config = config
        self._set_ear()
        await self.send(events.session("updated", self._effective()))

    def _set_ear(self) -> None:
        turns = self.config.turn_detection
        self.ear.change_format(wire(self.config.input_format))
        if turns is None:
            self.ear.detector = None
            return
        detector = self.ear.detector = self.ear.detector or TurnDetector()
        detector.threshold = turns.get("threshold", 0.5)
        detector.silence_ms = self.config.silence_ms
        self.ear.padding_ms = int(turns.get("prefix_padding_ms", 300))

    # -- what is heard --------------------------------------------------------------------------------------------
    async def _hear(self, data: bytes) -> None:
        self._guard()
        for number, noticed in enumerate(self.ear.push(data)):
            if noticed is not None:
                await self._notice(noticed)
            if number % STEPS_AT_A_TIME == STEPS_AT_A_TIME - 1:
                await asyncio.sleep(0)
                self._guard()
        await self._look_whether_idle()

    def _guard(self) -> None:
        """Speech must be clearer, or is not heard, while what comes may be our own."""
        playing = time.monotonic() < self._plays_until + ECHO_S
        self.ear.guarded, self.ear.muted = playing, playing and self.config.extension["half_duplex"]

    async def _notice(self, noticed: Noticed) -> None:
        match noticed.change:
            case "started":
                await self._turn_began(noticed.at_ms)
            case "paused" if self.ear.kept_ms < MOST_EARLY_MS:
                self._early = self._spawn(self._words(self.ear.sound()))
            case "resumed":
                self._forget_early()
            case "stopped":
                await self._turn_ended(noticed.at_ms)

    def _forget_early(self) -> None:
        if self._early is not None:
            self._early.cancel()
            self._early = None

    async def _turn_began(self, at_ms: int) -> None:
        self._turn_item, self._idle_since_ms = events.new_id("item"), None
        await self.send(events.speech_started(self._turn_item, at_ms))
        turns = self.config.turn_detection or {}
        if turns.get("interrupt_response"):
            if self._answer_soon is not None and self._answer_soon.cancel():
                self._owed = True
            if self.active is not None:
                self._owed |= not self.active.told_anything
                self.active.cancel("turn_detected")
            self._plays_until = 0.0

    async def _turn_ended(self, at_ms: int) -> None:
        item_id = self._turn_item or events.new_id("item")
        await self.send(events.speech_stopped(item_id, at_ms))
        early, self._early = self._early, None
        item = await self._commit(item_id, early)
        self._idle_since_ms = self.ear.now_ms
        if (self.config.turn_detection or {}).get("create_response"):
            self._answer_soon = self._spawn(self._answer_when_heard(item))

    async def _commit_by_hand(self) -> None:
        found = self.ear.held_ms >= LEAST_COMMIT_MS and (self.ear.detector is None or self.ear.speaking)
        if not found:
            message = f"The input buffer holds less than {LEAST_COMMIT_MS} ms of speech; append more first."
            raise ApiError(400, message, None, "input_audio_buffer_commit_empty")
        self._forget_early()
        await self._commit(self._turn_item or events.new_id("item"), None)

    async def _commit(self, item_id: str, early: asyncio.Task[str] | None) -> Item:
        """The sound so far becomes a message of the user's. ``early``: its words, if somebody is finding them."""
        self._turn_item = None
        sound = self.ear.take()
        item = Item(item_id, "user", None, spoken=True)
        previous = self.conversation.add(item)
        await self.send(events.committed(item_id, previous))
        words = self._spawn(self._words(sound) if early is None else self._words_after(early, sound))
        self._listen(item, words, len(sound))
        await self._tell_item(item, previous)
        return item

    def _listen(self, item: Item, words: asyncio.Task[str], samples: int) -> None:
        item.hearing = self._spawn(self._transcribe(item, words, samples / HEARING_RATE))

    async def _tell_item(self, item: Item, previous: str | None) -> None:
        shape = item.shape()
        await self.send(events.item("added", shape, previous))
        await self.send(events.item("done", shape, previous))

    async def _words(self, sound: Samples) -> str:
        return (await self.service.transcribe(sound, HEARING_RATE, Hint(quick=True), self.client)).text.strip()

    async def _words_after(self, early: asyncio.Task[str], sound: Samples) -> str:
        """The words that were looked for in the pause; where that went wrong, they are looked for again."""
        try:
            return await early
        except ApiError:
            return await self._words(sound)

    async def _transcribe(self, item: Item, words: asyncio.Task[str], seconds: float) -> None:
        """Wait for the words of ``item``, and tell them to those who want to know."""
        tells = self.config.transcription is not None
        try:
            item.text = await words
        except Exception as error:
            await self.send(events.transcription_failed(item.id, told(error)))
            return
        if tells:
            for event in events.transcribed(item.id, item.text, round(seconds, 3)):
                await self.send(event)

    async def _answer_when_heard(self, item: Item) -> None:
        """Respond to what was said; noise without a word is not answered, but what it interrupted is. Without
        ``interrupt_response`` the answer that is being made is heard to its end before."""
        assert item.hearing is not None
        await asyncio.wait({item.hearing})
        if not (item.text or self._owed):
            return
        while self._active_task is not None and not (self.config.turn_detection or {}).get("interrupt_response"):
            await asyncio.wait({self._active_task})
        await self._respond(Asked(self.config.copied(), self.conversation.items, self.conversation))

    async def _look_whether_idle(self) -> None:
        """After a long silence, which is told once, the assistant goes on by itself."""
        limit = (self.config.turn_detection or {}).get("idle_timeout_ms")
        if limit is None or self._idle_since_ms is None or self.ear.speaking:
            return
        if self.active is not None or time.monotonic() < self._plays_until:
            self._idle_since_ms = self.ear.now_ms
        elif self.ear.now_ms - self._idle_since_ms >= limit:
            item = Item(events.new_id("item"), "user", "", spoken=True)
            await self.send(events.timeout_triggered(item.id, self._idle_since_ms, self.ear.now_ms))
            self._idle_since_ms = None
            previous = self.conversation.add(item)
            await self.send(events.committed(item.id, previous))
            await self._tell_item(item, previous)
            await self._respond(Asked(self.config.copied(), self.conversation.items, self.conversation))

    # -- items ----------------------------------------------------------------------------------------------------
    async def _create_item(self, event: dict[str, Any]) -> None:
        item, data = item_of(event.get("item"))
        sound = None
        if data is not None:
            sound = self._sound_of(unpacked(data, "item.content"))
        previous = event.get("previous_item_id")
        before = self.conversation.add(item, previous if isinstance(previous, str) else None)
        if sound is not None:
            self._listen(item, self._spawn(self._words(sound)), len(sound))
        await self._tell_item(item, before)

    def _sound_of(self, data: bytes) -> Samples:
        receiver = Receiver(wire(self.config.input_format), HEARING_RATE)
        if len(data) > MOST_S * receiver.format.rate * receiver.format.bytes_per_sample:
            raise ApiError(400, f"The sound of an item has at most {MOST_S} s; send less.", "item.content")
        return receiver.push(data)

    async def _truncate(self, event: dict[str, Any]) -> None:
        code = "item_truncate_invalid_item_id"
        item = self.conversation.find(event.get("item_id"), code)
        if item.role != "assistant" or not item.spoken:
            raise ApiError(400, "Only what the assistant has spoken can be truncated.", "item_id", code)
        end_ms = event.get("audio_end_ms")
        if not isinstance(end_ms, int | float) or isinstance(end_ms, bool) or end_ms < 0:
            raise ApiError(400, "audio_end_ms is a number of milliseconds from 0.", "audio_end_ms", "invalid_value")
        await self.send(events.item_truncated(item.id, item.cut(end_ms)))

    # -- responses ------------------------------------------------------------------------------------------------
    async def _respond_by_hand(self, asked: Any) -> None:
        asked = {} if asked is None else asked
        if not isinstance(asked, dict):
            raise ApiError(400, "response must be an object.", "response", "invalid_value")
        in_band = asked.get("conversation") != "none"
        if in_band and self.active is not None and not self.active.cancelled:
            code = "conversation_already_has_active_response"
            raise ApiError(400, "A response is being made; cancel it or wait for its end.", None, code)
        metadata = asked.get("metadata")
        items = self._input_of(asked["input"]) if isinstance(asked.get("input"), list) else self.conversation.items
        await self._respond(
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
            else:
                found.append(item_of(one)[0])
        return found

    async def _respond(self, asked: Asked) -> None:
        """Begin a response, once the one before it has told its end."""
        in_band = asked.conversation is not None
        while in_band and self._active_task is not None:  # again: somebody else may have waited for the same end
            if self.active is not None:
                self.active.cancel("turn_detected")
            await asyncio.wait({self._active_task})
        response = Response(self.service, self.client, asked, self.send, self._sounded)
        task = self._spawn(self._run(response))
        if in_band:
            self.active, self._active_task, self._owed = response, task, False

    async def _run(self, response: Response) -> None:
        try:
            with contextlib.suppress(WebSocketDisconnect, TimeoutError, RuntimeError):  # the client has left
                await response.run()
        finally:
            if self.active is response:
                self.active = self._active_task = None

    def _cancel_by_hand(self, response_id: Any) -> None:
        active = self.active
        if active is None or active.cancelled or (response_id is not None and response_id != active.id):
            message = "Cancellation failed: no such response is being made."
            raise ApiError(400, message, "response_id", "response_cancel_not_active")
        active.cancel("client_cancelled")
        self._plays_until = 0.0

    def _sounded(self, seconds: float) -> None:
        """So much more sound has been sent."""
        self._plays_until = max(self._plays_until, time.monotonic()) + seconds
