"""What a client says becomes messages of the conversation: the sound of a turn, its end, its words."""

from __future__ import annotations

import asyncio
from typing import Any

from speech_mtp.frontends.base import Hint
from speech_mtp.serving.errors import ApiError, told
from speech_mtp.serving.realtime import events
from speech_mtp.serving.realtime.config import SessionConfig
from speech_mtp.serving.realtime.ear import HEARING_RATE, MOST_S, Ear, VoiceActivity
from speech_mtp.serving.realtime.items import Conversation, Item, item_of
from speech_mtp.serving.realtime.response import Send
from speech_mtp.serving.realtime.sound import Receiver, Samples, unpacked, wire
from speech_mtp.serving.realtime.tasks import Tasks
from speech_mtp.serving.realtime.turns import TurnDetector
from speech_mtp.serving.service import VoiceService

LEAST_COMMIT_MS = 100
MOST_EARLY_MS = 15_000
"""Of sound whose words are looked for in every pause: of a longer turn at its end."""


class Hearing:
    """The ear of one session, and what becomes of what it hears. :meth:`configure` it before anything else."""

    def __init__(
        self, service: VoiceService, client: str, conversation: Conversation, send: Send, tasks: Tasks
    ) -> None:
        self.conversation = conversation
        self._service, self._client, self._send, self._tasks = service, client, send, tasks
        self._turn_item: str | None = None  # of the turn that is spoken
        self._early: asyncio.Task[str] | None = None  # the words of a turn that has perhaps ended

    def open(self, config: SessionConfig, vad: VoiceActivity) -> None:
        """Begin to listen, as ``config`` says."""
        self.ear = Ear(wire(config.input_format), vad)
        self.configure(config)

    def configure(self, config: SessionConfig) -> None:
        """Listen as ``config`` says from now on."""
        self._config = config
        turns = config.turn_detection
        self.ear.change_format(wire(config.input_format))
        if turns is None:
            self.ear.detector = None
            return
        detector = self.ear.detector = self.ear.detector or TurnDetector()
        detector.threshold = turns.get("threshold", 0.5)
        detector.silence_ms = config.silence_ms
        self.ear.padding_ms = int(turns.get("prefix_padding_ms", 300))

    def clear(self) -> None:
        """Forget what has come."""
        self.turn_resumed()
        self.ear.clear()
        self.ear.begin_anew(wire(self._config.input_format))

    # -- turns ----------------------------------------------------------------------------------------------------
    async def turn_began(self, at_ms: int) -> None:
        """Somebody has begun to speak."""
        self._turn_item = events.new_id("item")
        await self._send(events.speech_started(self._turn_item, at_ms))

    def turn_paused(self) -> None:
        """The turn has perhaps ended: its words can be looked for already."""
        if self.ear.kept_ms < MOST_EARLY_MS:
            self._early = self._tasks.begin(self._words(self.ear.sound()))

    def turn_resumed(self) -> None:
        """It has not."""
        if self._early is not None:
            self._early.cancel()
            self._early = None

    async def turn_ended(self, at_ms: int) -> Item:
        """Nobody speaks any more; the message that was said."""
        item_id = self._turn_item or events.new_id("item")
        await self._send(events.speech_stopped(item_id, at_ms))
        early, self._early = self._early, None
        return await self._commit(item_id, early)

    async def commit(self) -> None:
        """The client says that its turn has ended. Raises ApiError 400 where there is nothing of it."""
        if self.ear.held_ms < LEAST_COMMIT_MS or not (self.ear.detector is None or self.ear.speaking):
            message = f"The input buffer holds less than {LEAST_COMMIT_MS} ms of speech; append more first."
            raise ApiError(400, message, None, "input_audio_buffer_commit_empty")
        self.turn_resumed()
        await self._commit(self._turn_item or events.new_id("item"), None)

    async def _commit(self, item_id: str, early: asyncio.Task[str] | None) -> Item:
        """The sound so far becomes a message. ``early``: its words, if somebody is finding them."""
        self._turn_item = None
        sound = self.ear.take()
        item = Item(item_id, "user", None, spoken=True)
        previous = self.conversation.add(item)
        await self._send(events.committed(item_id, previous))
        self.listen(item, sound, early)
        await self.tell(item, previous)
        return item

    async def stay_silent(self, since_ms: int) -> None:
        """Nothing has been said since then, which becomes a message without a word."""
        item = Item(events.new_id("item"), "user", "", spoken=True)
        await self._send(events.timeout_triggered(item.id, since_ms, self.ear.now_ms))
        previous = self.conversation.add(item)
        await self._send(events.committed(item.id, previous))
        await self.tell(item, previous)

    # -- items ----------------------------------------------------------------------------------------------------
    def read(self, asked: Any) -> tuple[Item, Samples | None]:
        """The item that a client describes, and what is spoken in it, if that is to be heard. Raises ApiError 400."""
        item, data = item_of(asked)
        return item, None if data is None else self._sound_of(unpacked(data, "item.content"))

    def _sound_of(self, data: bytes) -> Samples:
        receiver = Receiver(wire(self._config.input_format), HEARING_RATE)
        if receiver.format.seconds(data) > MOST_S:
            raise ApiError(400, f"The sound of an item has at most {MOST_S} s; send less.", "item.content")
        return receiver.push(data)

    async def tell(self, item: Item, previous: str | None) -> None:
        """``item``, which is complete, has come behind ``previous``."""
        shape = item.shape()
        await self._send(events.item("added", shape, previous))
        await self._send(events.item("done", shape, previous))

    # -- words ----------------------------------------------------------------------------------------------------
    def listen(self, item: Item, sound: Samples, early: asyncio.Task[str] | None = None) -> None:
        """Find the words of ``item``. ``early``: somebody has begun to."""
        words = self._tasks.begin(self._words(sound) if early is None else self._words_after(early, sound))
        item.hearing = self._tasks.begin(self._transcribe(item, words, len(sound) / HEARING_RATE))

    async def _words(self, sound: Samples) -> str:
        return (await self._service.transcribe(sound, HEARING_RATE, Hint(quick=True), self._client)).text.strip()

    async def _words_after(self, early: asyncio.Task[str], sound: Samples) -> str:
        """The words that were looked for in the pause; where that went wrong, they are looked for again."""
        try:
            return await early
        except ApiError:
            return await self._words(sound)

    async def _transcribe(self, item: Item, words: asyncio.Task[str], seconds: float) -> None:
        """Wait for the words of ``item``, and tell them to those who want to know."""
        tells = self._config.transcription is not None
        try:
            item.text = await words
        except Exception as error:
            await self._send(events.transcription_failed(item.id, told(error)))
            return
        if tells:
            for event in events.transcribed(item.id, item.text, round(seconds, 3)):
                await self._send(event)
