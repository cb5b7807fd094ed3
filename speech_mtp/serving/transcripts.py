"""What was heard, in the shapes of OpenAI's transcriptions: JSON, text, subtitles, events."""

from __future__ import annotations

from math import ceil
from typing import Any

from speech_mtp.frontends.base import Segment, Transcript

AUDIO_TOKENS_PER_S = 10
"""Events tell usage in tokens: those of the text, and so many for each second of sound."""
UNDETERMINED = "und"
"""The language (ISO 639-2) of a recording in which nothing is said."""


def as_json(transcript: Transcript) -> dict[str, Any]:
    """``json``."""
    return {"text": transcript.text, "usage": _seconds(transcript)}


def as_verbose_json(transcript: Transcript, segments: bool, words: bool) -> dict[str, Any]:
    """``verbose_json``, with ``segments``, and with the times of ``words``."""
    found: dict[str, Any] = {
        "task": "transcribe",
        "language": transcript.language or UNDETERMINED,
        "duration": round(transcript.duration_s, 3),
        "text": transcript.text,
        "usage": _seconds(transcript),
    }
    if segments:
        found["segments"] = [_segment(i, segment) for i, segment in enumerate(transcript.segments)]
    if words:
        found["words"] = [
            {"word": word.text, "start": word.start_s, "end": word.end_s}
            for segment in transcript.segments
            for word in segment.words
        ]
    return found


def _segment(number: int, segment: Segment) -> dict[str, Any]:
    return {
        "id": number,
        "seek": segment.seek,
        "start": segment.start_s,
        "end": segment.end_s,
        "text": segment.text,
        "tokens": list(segment.tokens),
        "temperature": segment.temperature,
        "avg_logprob": segment.avg_logprob,
        "compression_ratio": segment.compression_ratio,
        "no_speech_prob": segment.no_speech_prob,
    }


def _seconds(transcript: Transcript) -> dict[str, Any]:
    return {"type": "duration", "seconds": round(transcript.duration_s, 3)}


# -- text -------------------------------------------------------------------------------------------------------------
def as_text(transcript: Transcript) -> str:
    """``text``."""
    return f"{transcript.text}\n"


def as_srt(transcript: Transcript) -> str:
    """``srt``: SubRip."""
    cues = [f"{i}\n{_cue(segment, ',')}" for i, segment in enumerate(transcript.segments, start=1)]
    return "".join(cues)


def as_vtt(transcript: Transcript) -> str:
    """``vtt``: WebVTT."""
    return "WEBVTT\n\n" + "".join(_cue(segment, ".") for segment in transcript.segments)


def _cue(segment: Segment, point: str) -> str:
    text = " ".join(segment.text.split()).replace("-->", "->")  # which would be read as times
    return f"{_time(segment.start_s, point)} --> {_time(segment.end_s, point)}\n{text}\n\n"


def _time(seconds: float, point: str) -> str:
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{rest // 1000:02}{point}{rest % 1000:03}"


# -- events -----------------------------------------------------------------------------------------------------------
def delta(text: str) -> dict[str, Any]:
    """More of the text."""
    return {"type": "transcript.text.delta", "delta": text}


def done(transcript: Transcript) -> dict[str, Any]:
    """All of it."""
    heard = ceil(AUDIO_TOKENS_PER_S * transcript.duration_s)
    written = sum(len(segment.tokens) for segment in transcript.segments)
    usage = {
        "type": "tokens",
        "input_tokens": heard,
        "input_token_details": {"text_tokens": 0, "audio_tokens": heard},
        "output_tokens": written,
        "total_tokens": heard + written,
    }
    return {"type": "transcript.text.done", "text": transcript.text, "usage": usage}
