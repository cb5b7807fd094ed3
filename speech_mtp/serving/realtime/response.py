"""One response of a realtime session: written and spoken by the service, told event by event."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from speech_mtp.serving.answering import Answering
from speech_mtp.serving.bodies import Speech
from speech_mtp.serving.errors import ApiError, told
from speech_mtp.serving.orders import order
from speech_mtp.serving.realtime import events
from speech_mtp.serving.realtime.config import SessionConfig
from speech_mtp.serving.realtime.figures import Figures
from speech_mtp.serving.realtime.items import Conversation, Item, messages
from speech_mtp.serving.realtime.sound import Sender, wire
from speech_mtp.serving.realtime.transcript import SpokenTranscript
from speech_mtp.serving.service import VoiceService
from speech_mtp.serving.speaking import Manner
from speech_mtp.streaming.authors import Wish
from speech_mtp.streaming.stream import Chunk

Send = Callable[[events.Event], Awaitable[None]]


@dataclass(frozen=True)
class Asked:
    """What a response shall be. ``conversation``: where its item goes, None for one out of band. ``items``: what it
    answers."""

    config: SessionConfig
    items: list[Item]
    conversation: Conversation | None
    metadata: dict[str, Any] | None = None


class Response:
    """:meth:`run` it once; :meth:`cancel` it at any time. ``sounded`` is called with the seconds of every piece of
    sound that was sent."""

    def __init__(
        self, service: VoiceService, client: str, asked: Asked, send: Send, sounded: Callable[[float], None]
    ) -> None:
        self.id = events.new_id("response")
        self.asked, self.config = asked, asked.config
        self.item = Item(events.new_id("item"), "assistant", "", self.config.spoken, "in_progress", empty=True)
        self.item.track = SpokenTranscript(timed=service.model.lm.layout.points)
        self._service, self._client, self._send, self._sounded = service, client, send, sounded
        self._part = events.Part(self.id, self.item.id, self.config.spoken)
        self._status = "in_progress"
        self._details: dict[str, Any] | None = None
        self._begun = self._part_begun = False
        self._answering: Answering | None = None
        self._reason: str | None = None
        self._work: asyncio.Task[None] | None = None
        self._began = time.monotonic()

    # -- life -----------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Tell everything, from created to done; done also when it fails or is cancelled."""
        await self._send(events.response("created", self._shape()))
        work = self._work = asyncio.ensure_future(self._answer())
        if self._reason is not None:
            work.cancel()
        try:
            await asyncio.wait({work})
        finally:
            work.cancel()
        await self._end(work)

    def cancel(self, reason: str) -> None:
        """Write and say no more. ``reason``: turn_detected or client_cancelled."""
        if self._reason is None:
            self._reason = reason
            if self._work is not None:
                self._work.cancel()

    @property
    def over(self) -> bool:
        """Whether nothing more is made: it was told to stop, or tells its end."""
        return self._reason is not None or self._status != "in_progress"

    @property
    def told_anything(self) -> bool:
        """Whether its client has text or sound of it."""
        return bool(self.item.text)

    async def _answer(self) -> None:
        service = self._service
        manner = self._manner() if self.config.spoken else None
        history = await messages(self.asked.items, self.config.instructions)
        if not any(message["role"] == "user" for message in history):
            raise ApiError(400, "There is nothing to answer; say something first.", "input", "nothing_to_answer")
        wish = Wish(max_tokens=self.config.max_output_tokens, drafting=self.config.extension["drafting"])
        question = await service.question(history, wish)
        self._answering = answering = await service.answer(self._client, question, manner)
        async with answering:
            await answering.begun()
            await self._begin()
            await self._tell(answering)

    def _manner(self) -> Manner:
        voice = self.config.voice if self._service.knows_voice(self._client, self.config.voice) else None
        speech = Speech(voice=voice, response_format="pcm", speed=self.config.speed)
        manner = order(self._service, self._client, speech, paced=True).manner
        return replace(manner, ahead_s=self._service.settings.realtime_ahead_s)

    # -- what is told ---------------------------------------------------------------------------------------------
    async def _begin(self) -> None:
        conversation = self.asked.conversation
        self._begun = True
        await self._send(events.output_item("added", self.id, self.item.shape()))
        if conversation is not None:
            previous = conversation.add(self.item)
            await self._send(events.item("added", self.item.shape(), previous))
        self._part_begun, self.item.empty = True, False
        await self._send(self._part.added())

    async def _tell(self, answering: Answering) -> None:
        sender = Sender(wire(self.config.output_format), self._service.sample_rate, self.config.speed)
        figures = Figures(self._began, answering, self.config.extension["drafting"])
        async for piece in answering.pieces():
            if isinstance(piece, str):
                await self._tell_text(piece)
            else:
                await self._tell_sound(piece, sender.push(piece.wave), sender)
            await self._tell_extensions(figures, False)
        await self._tell_sound(None, sender.close(), sender)
        assert self.item.track is not None
        self.item.track.complete = True
        await self._tell_extensions(figures, True)

    async def _tell_text(self, piece: str) -> None:
        assert self.item.track is not None
        self.item.track.text += piece
        if self.item.heard_ms is None:
            self.item.text = self.item.track.text
        await self._send(self._part.text(piece))

    async def _tell_sound(self, chunk: Chunk | None, data: bytes, sender: Sender) -> None:
        assert self.item.track is not None
        if data:
            seconds = sender.format.seconds(data)
            self.item.audio_ms += 1000 * seconds
            self._sounded(seconds)
            await self._send(self._part.audio(base64.b64encode(data).decode("ascii")))
        if chunk is not None and chunk.words:
            spoken = [self.item.track.say(word, self.config.speed) for word in chunk.words]
            if "speech_mtp.words" in self.config.include:
                await self._send(events.words(self.id, self.item.id, [word.shape() for word in spoken]))

    async def _tell_extensions(self, figures: Figures, last: bool) -> None:
        steps = figures.take_steps()
        if steps and "speech_mtp.drafting" in self.config.include:
            await self._send(events.drafting(self.id, self.item.id, steps))
        if "speech_mtp.figures" in self.config.include and figures.due(last):
            await self._send(events.figures(self.id, figures.now(self.item.audio_ms / 1000)))

    async def _end(self, work: asyncio.Task[None]) -> None:
        """How it ended, and the rest of the events, which are sent in any case."""
        failure = None if work.cancelled() else work.exception()
        if work.cancelled():
            self._status, self._details = "cancelled", {"type": "cancelled", "reason": self._reason}
            if self.config.spoken and self.item.heard_ms is None:
                self.item.cut(self.item.audio_ms)
        elif isinstance(failure, Exception):
            refusal = told(failure)
            about = {"type": refusal.type, "code": refusal.code, "message": refusal.message}
            self._status, self._details = "failed", {"type": "failed", "error": about}
        elif self._outcome_reason() == "length":
            self._status, self._details = "incomplete", {"type": "incomplete", "reason": "max_output_tokens"}
        else:
            self._status = "completed"
        self.item.status = "completed" if self._status == "completed" else "incomplete"
        if self._begun:
            await self._end_item()
        await self._send(events.response("done", self._shape()))

    async def _end_item(self) -> None:
        for event in self._part.done(self.item.text or "") if self._part_begun else ():
            await self._send(event)
        if self.asked.conversation is not None:
            with contextlib.suppress(ApiError):  # it may have been deleted meanwhile
                self.asked.conversation.find(self.item.id)
                await self._send(events.item("done", self.item.shape(), self.asked.conversation.before(self.item)))
        await self._send(events.output_item("done", self.id, self.item.shape()))

    def _outcome_reason(self) -> str | None:
        outcome = self._answering.outcome if self._answering is not None else None
        return outcome.finish.reason if outcome is not None else None

    # -- its shape ------------------------------------------------------------------------------------------------
    def _shape(self) -> dict[str, Any]:
        config, conversation = self.config, self.asked.conversation
        done = self._status != "in_progress"
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": self._status,
            "status_details": self._details,
            "output": [self.item.shape()] if done and self._begun else [],
            "output_modalities": config.modalities,
            "conversation_id": conversation.id if conversation is not None else None,
            "metadata": self.asked.metadata,
            "max_output_tokens": config.max_output_tokens or "inf",
            "audio": {"output": {"format": config.output_format, "voice": config.voice}},
            "usage": self._usage() if done else None,
        }

    def _usage(self) -> dict[str, Any]:
        answering = self._answering
        outcome = answering.outcome if answering is not None else None
        read = (outcome.prompt_tokens or 0) if outcome is not None else 0
        written = (outcome.tokens or 0) if outcome is not None else 0
        frames = answering.speaking.tally.frames if answering is not None and answering.speaking is not None else 0
        cached = outcome.cached_tokens if outcome is not None else 0
        return {
            "total_tokens": read + written + frames,
            "input_tokens": read,
            "output_tokens": written + frames,
            "input_token_details": {
                "text_tokens": read,
                "audio_tokens": 0,
                "cached_tokens": cached,
                "cached_tokens_details": {"text_tokens": cached, "audio_tokens": 0, "image_tokens": 0},
            },
            "output_token_details": {"text_tokens": written, "audio_tokens": frames},
        }
