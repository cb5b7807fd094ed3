"""The body of ``POST /v1/chat/completions``, and the history that it holds as plain messages of text."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from speech_mtp.frontends.base import SAMPLE_RATE, Wave
from speech_mtp.lm.chat import Message
from speech_mtp.serving.bodies import VoiceId
from speech_mtp.serving.errors import ApiError
from speech_mtp.serving.service import VoiceService
from speech_mtp.serving.sound_in import decode, from_base64, refused_as
from speech_mtp.streaming.authors import Wish

MOST_MESSAGES = 2048
Stop = Annotated[str, Field(min_length=1, max_length=256)]
Count = Annotated[int, Field(ge=1, lt=2**31)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True)


class AudioId(_Strict):
    """A spoken answer of an earlier turn."""

    id: str


class ChatMessage(_Strict):
    """One message. ``content``: text, or parts of it."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[dict[str, Any]] | None = None
    audio: AudioId | None = None


class ChatAudio(_Strict):
    """How an answer is spoken."""

    voice: str | VoiceId | None = None
    format: Literal["wav", "aac", "mp3", "flac", "opus", "pcm16"]

    @property
    def voice_name(self) -> str | None:
        return self.voice.id if isinstance(self.voice, VoiceId) else self.voice


class StreamOptions(_Strict):
    """``include_usage``: the last chunk tells it."""

    include_usage: bool | None = None


class ChatRequest(_Strict):
    """What is asked for. Fields that mean nothing here are accepted and ignored."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=MOST_MESSAGES)]
    model: str | None = None
    modalities: Annotated[list[Literal["text", "audio"]], Field(min_length=1)] | None = None
    audio: ChatAudio | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=4)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None

    @field_validator("n")
    @classmethod
    def _one(cls, value: int | None) -> int | None:
        if value not in (None, 1):
            raise ValueError("one answer is given to a request; ask again for another")
        return value

    @model_validator(mode="after")
    def _audio_fits(self) -> ChatRequest:
        if self.spoken and self.audio is None:
            raise ValueError("a spoken answer needs audio, with a voice and a format")
        if self.spoken and self.stream and self.audio is not None and self.audio.format != "pcm16":
            raise ValueError("a streamed answer is spoken as pcm16; ask for that, or do not stream")
        return self

    @property
    def spoken(self) -> bool:
        """Whether sound is wanted."""
        return "audio" in (self.modalities or ())

    @property
    def wish(self) -> Wish:
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        longest = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        return Wish(self.temperature, self.top_p, self.seed, longest, stops)


async def history(service: VoiceService, client: str, messages: list[ChatMessage]) -> list[Message]:
    """``messages`` as text alone. Raises ApiError 400 for what cannot be read."""
    found = [await _message(service, client, f"messages.{i}", message) for i, message in enumerate(messages)]
    if found[-1]["role"] == "assistant":
        raise ApiError(400, "The last message is the assistant's; end with what it shall answer.", "messages")
    return found


async def _message(service: VoiceService, client: str, where: str, message: ChatMessage) -> Message:
    role = "system" if message.role == "developer" else message.role
    if message.audio is not None:
        text = service.said.find(client, message.audio.id) if role == "assistant" else None
        if text is None:
            raise ApiError(400, "There is no such answer, or not any more.", f"{where}.audio.id", "audio_not_found")
    elif isinstance(message.content, list):
        parts = [await _part(service, client, f"{where}.content.{i}", part) for i, part in enumerate(message.content)]
        text = "\n".join(parts)
    else:
        text = message.content or ""
    if role == "user" and not text.strip():
        raise ApiError(400, "A message of the user is empty; say something.", f"{where}.content")
    return {"role": role, "content": text}


async def _part(service: VoiceService, client: str, where: str, part: dict[str, Any]) -> str:
    kind = part.get("type")
    if kind == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return str(part["refusal"])
    if kind == "input_audio":
        return await _heard(service, client, where, part.get("input_audio"))
    raise ApiError(400, "A part of a message is a text or an input_audio; others are not understood.", where)


async def _heard(service: VoiceService, client: str, where: str, sound: Any) -> str:
    """What is said in a recording."""
    if service.recogniser is None:
        raise ApiError(400, "This server recognises no speech; send the words as text.", where, "no_recogniser")
    data, name = (sound.get("data"), sound.get("format")) if isinstance(sound, dict) else (None, None)
    if name not in ("wav", "mp3") or not isinstance(data, str):
        raise ApiError(400, "input_audio needs data in base64 and the format wav or mp3.", f"{where}.input_audio")
    with refused_as(f"{where}.input_audio.data"):
        async with await service.hear(partial(_wave, service, data), key=client) as listening:
            return (await listening.transcript()).text


def _wave(service: VoiceService, data: str) -> Wave:
    return decode(from_base64(data), SAMPLE_RATE, service.settings.max_recording_s)
