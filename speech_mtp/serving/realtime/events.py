"""Every event that the server sends, with all fields that some client insists on, whatever their value.

Source: OpenAI's realtime API (GA) as its SDKs read it. ``event_id`` is given when an event is sent.
"""

from __future__ import annotations

import uuid
from typing import Any

from speech_mtp.serving.errors import ApiError

Event = dict[str, Any]
PREFIXES = {"event": "event_", "item": "item_", "response": "resp_", "session": "sess_", "conversation": "conv_"}


def new_id(kind: str) -> str:
    """A fresh id of an event, item, response, session or conversation."""
    return PREFIXES[kind] + uuid.uuid4().hex[:21]


def error(refusal: ApiError, client_event_id: str | None = None) -> Event:
    """A client's event was refused; the session goes on."""
    return {"type": "error", "error": {**refusal.body(), "event_id": client_event_id}}


def session(kind: str, effective: dict[str, Any]) -> Event:
    """``kind``: created, updated."""
    return {"type": f"session.{kind}", "session": effective}


# -- the conversation ---------------------------------------------------------------------------------------------
def item(kind: str, shape: dict[str, Any], previous: str | None) -> Event:
    """``kind``: added, done."""
    return {"type": f"conversation.item.{kind}", "previous_item_id": previous, "item": shape}


def item_retrieved(shape: dict[str, Any]) -> Event:
    return {"type": "conversation.item.retrieved", "item": shape}


def item_deleted(item_id: str) -> Event:
    return {"type": "conversation.item.deleted", "item_id": item_id}


def item_truncated(item_id: str, audio_end_ms: int) -> Event:
    return {
        "type": "conversation.item.truncated",
        "item_id": item_id,
        "content_index": 0,
        "audio_end_ms": audio_end_ms,
    }


# -- what is heard ------------------------------------------------------------------------------------------------
def speech_started(item_id: str, audio_start_ms: int) -> Event:
    return {"type": "input_audio_buffer.speech_started", "item_id": item_id, "audio_start_ms": audio_start_ms}


def speech_stopped(item_id: str, audio_end_ms: int) -> Event:
    return {"type": "input_audio_buffer.speech_stopped", "item_id": item_id, "audio_end_ms": audio_end_ms}


def timeout_triggered(item_id: str, start_ms: int, end_ms: int) -> Event:
    return {
        "type": "input_audio_buffer.timeout_triggered",
        "item_id": item_id,
        "audio_start_ms": start_ms,
        "audio_end_ms": end_ms,
    }


def committed(item_id: str, previous: str | None) -> Event:
    return {"type": "input_audio_buffer.committed", "item_id": item_id, "previous_item_id": previous}


def cleared() -> Event:
    return {"type": "input_audio_buffer.cleared"}


def transcribed(item_id: str, transcript: str, seconds: float) -> list[Event]:
    """A transcript, told once as a whole: nothing of it changes any more."""
    about = {"item_id": item_id, "content_index": 0}
    kind = "conversation.item.input_audio_transcription"
    usage = {"type": "duration", "seconds": seconds}
    delta = [{"type": f"{kind}.delta", **about, "delta": transcript}] if transcript else []
    return [*delta, {"type": f"{kind}.completed", **about, "transcript": transcript, "usage": usage}]


def transcription_failed(item_id: str, refusal: ApiError) -> Event:
    return {
        "type": "conversation.item.input_audio_transcription.failed",
        "item_id": item_id,
        "content_index": 0,
        "error": refusal.body(),
    }


# -- one response -------------------------------------------------------------------------------------------------
def response(kind: str, shape: dict[str, Any]) -> Event:
    """``kind``: created, done."""
    return {"type": f"response.{kind}", "response": shape}


def output_item(kind: str, response_id: str, shape: dict[str, Any]) -> Event:
    """``kind``: added, done."""
    return {"type": f"response.output_item.{kind}", "response_id": response_id, "output_index": 0, "item": shape}


class Part:
    """Events of the one part of a response's one item, which is spoken or written."""

    def __init__(self, response_id: str, item_id: str, spoken: bool) -> None:
        self._where = {"response_id": response_id, "item_id": item_id, "output_index": 0, "content_index": 0}
        self._spoken = spoken
        self._text = "response.output_audio_transcript" if spoken else "response.output_text"

    def added(self) -> Event:
        return {"type": "response.content_part.added", **self._where, "part": self._part("")}

    def text(self, delta: str) -> Event:
        return {"type": f"{self._text}.delta", **self._where, "delta": delta}

    def audio(self, data: str) -> Event:
        """``data``: sound in base64."""
        return {"type": "response.output_audio.delta", **self._where, "delta": data}

    def done(self, text: str) -> list[Event]:
        """All of the part has been sent."""
        name = "transcript" if self._spoken else "text"
        sound = [{"type": "response.output_audio.done", **self._where}] if self._spoken else []
        return [
            *sound,
            {"type": f"{self._text}.done", **self._where, name: text},
            {"type": "response.content_part.done", **self._where, "part": self._part(text)},
        ]

    def _part(self, text: str) -> dict[str, str]:
        return {"type": "audio", "transcript": text} if self._spoken else {"type": "text", "text": text}


# -- beyond OpenAI's: sent to those who asked for them with ``include`` -----------------------------------------------
def words(response_id: str, item_id: str, found: list[dict[str, Any]]) -> Event:
    return {"type": "speech_mtp.words", "response_id": response_id, "item_id": item_id, "words": found}


def drafting(response_id: str, item_id: str, steps: list[dict[str, Any]]) -> Event:
    return {"type": "speech_mtp.drafting", "response_id": response_id, "item_id": item_id, "steps": steps}


def figures(response_id: str, found: dict[str, Any]) -> Event:
    return {"type": "speech_mtp.figures", "response_id": response_id, **found}
