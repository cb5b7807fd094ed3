"""Forms with a file (``multipart/form-data``): their fields, and the file's bytes."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from fastapi import UploadFile
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from speech_mtp.serving.bodies import SURROGATE
from speech_mtp.serving.errors import ApiError
from speech_mtp.voices.saved import NAME, NAME_RULE

LANGUAGE = re.compile(r"([A-Za-z]{2,3})([-_][A-Za-z0-9-]{1,32})?")


def _characters(text: str) -> str:
    if SURROGATE.search(text) or "\0" in text:
        raise ValueError("it holds a NUL, or half of a surrogate pair, which is no character")
    return text


def _language(tag: str) -> str:
    found = LANGUAGE.fullmatch(tag)
    if found is None:
        raise ValueError("write a language by its tag, as in en or en-US")
    return tag


def _voice_name(name: str) -> str:
    if NAME.fullmatch(name) is None:
        raise ValueError(NAME_RULE)
    return name


Text = Annotated[str, AfterValidator(_characters)]
Language = Annotated[str, Field(max_length=40), AfterValidator(_language)]
Granularity = Literal["word", "segment"]


class TranscriptionForm(BaseModel):
    """``POST /v1/audio/transcriptions``. Empty fields are none; unknown ones are ignored."""

    model_config = ConfigDict(protected_namespaces=())

    file: UploadFile
    model: Text | None = None
    language: Language | None = None
    prompt: Annotated[Text | None, Field(max_length=4096)] = None
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    temperature: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    stream: bool | None = None
    timestamp_granularities: Annotated[list[Granularity], Field(alias="timestamp_granularities[]", max_length=2)] = []

    @model_validator(mode="after")
    def _fits(self) -> TranscriptionForm:
        if self.timestamp_granularities and self.response_format != "verbose_json":
            raise ValueError("timestamp_granularities need response_format verbose_json")
        if self.stream and self.response_format not in ("json", "text"):
            raise ValueError("a streamed transcription is made of events; leave response_format out")
        return self

    @property
    def language_code(self) -> str | None:
        """ISO-639-1 of ``en-US`` is ``en``."""
        return re.split("[-_]", self.language)[0].lower() if self.language else None


VoiceName = Annotated[str, AfterValidator(_voice_name)]
"""Of a voice that a client makes."""


class VoiceForm(BaseModel):
    """``POST /v1/audio/voices``. ``consent``: the id of a consent that was left here, or who agreed in words of one's
    own."""

    audio_sample: UploadFile
    name: VoiceName
    consent: Annotated[Text, Field(max_length=2048)] | None = None
    type: Literal["audio_sample"] = "audio_sample"


class ConsentForm(BaseModel):
    """``POST /v1/audio/voice_consents``."""

    recording: UploadFile
    name: Annotated[Text, Field(min_length=1, max_length=256)]
    language: Language


class ConsentName(BaseModel):
    """``POST /v1/audio/voice_consents/{id}``."""

    model_config = ConfigDict(strict=True)
    name: Annotated[Text, Field(min_length=1, max_length=256)]


async def content(file: UploadFile, most: int, param: str) -> bytes:
    """The bytes of an uploaded file. Raises ApiError 413 for more than ``most``."""
    if file.size is not None and file.size > most:
        raise ApiError(413, f"The file has more than {most >> 20} MiB; send a part of it.", param)
    return await file.read()
