"""The answer of a chat in OpenAI's shapes, whole and in chunks, and the figures of how it was made."""

from __future__ import annotations

import base64
import time
import uuid
from typing import Any

from speech_mtp.decoding.engine import Statistics
from speech_mtp.serving import errors
from speech_mtp.serving.answering import Answering
from speech_mtp.serving.chat_bodies import ChatRequest
from speech_mtp.serving.errors import ApiError
from speech_mtp.serving.service import VoiceService
from speech_mtp.streaming.authors import AuthorError, TooLongError
from speech_mtp.streaming.stream import Chunk


def told(error: Exception) -> ApiError:
    """What a client is told of what went wrong."""
    if isinstance(error, TooLongError):
        return ApiError(400, str(error), "messages", "context_length_exceeded")
    if isinstance(error, AuthorError):
        return ApiError(502, str(error))
    if isinstance(error, ValueError):
        return ApiError(400, str(error), "messages")
    return errors.told(error)


class Completion:
    """One answer. ``began``: when it was asked for (``time.monotonic``)."""

    def __init__(
        self, service: VoiceService, client: str, body: ChatRequest, answering: Answering, began: float
    ) -> None:
        self.service, self.body, self.answering = service, body, answering
        self.text = ""
        self._client, self._began = client, began
        self._written_before_s = answering.began - began
        self._first_audio_s: float | None = None
        self._audio_id, self._expires_at = service.said.new_id()
        self._common = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": service.names.chats[0],
            "system_fingerprint": None,
        }

    def take(self, item: str | Chunk) -> None:
        """Something that was made."""
        if isinstance(item, str):
            self.text += item
        elif len(item.wave) and self._first_audio_s is None:
            self._first_audio_s = time.monotonic() - self._began

    # -- whole ----------------------------------------------------------------------------------------------------
    def whole(self, sound: str | None = None) -> dict[str, Any]:
        """``chat.completion``; with ``sound``, a file in base64, the text is its transcript."""
        message: dict[str, Any] = {"role": "assistant", "content": self.text, "refusal": None}
        if sound is not None:
            self._keep()
            audio = {"id": self._audio_id, "data": sound, "expires_at": self._expires_at, "transcript": self.text}
            message |= {"content": None, "audio": audio}
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason(), "logprobs": None}
        return {
            **self._common,
            "object": "chat.completion",
            "choices": [choice],
            "usage": self.usage(),
            "metrics": self.metrics(),
        }

    # -- chunks ---------------------------------------------------------------------------------------------------
    def opening(self) -> dict[str, Any]:
        """The first chunk."""
        if self.body.spoken:
            return self._chunk({"role": "assistant", "audio": {"id": self._audio_id}})
        return self._chunk({"role": "assistant", "content": ""})

    def text_chunk(self, piece: str) -> dict[str, Any]:
        """More text."""
        return self._chunk({"audio": {"transcript": piece}} if self.body.spoken else {"content": piece})

    def sound_chunk(self, data: bytes) -> dict[str, Any]:
        """More sound, pcm16."""
        return self._chunk({"audio": {"data": base64.b64encode(data).decode("ascii")}})

    def ending(self) -> list[dict[str, Any]]:
        """The last chunks."""
        found = []
        if self.body.spoken:
            self._keep()
            found.append(self._chunk({"audio": {"expires_at": self._expires_at}}))
        found.append({**self._chunk({}, self._finish_reason()), "metrics": self.metrics()})
        if self._tells_usage:
            found.append({**self._chunk({}), "choices": [], "usage": self.usage()})
        return found

    @property
    def _tells_usage(self) -> bool:
        options = self.body.stream_options
        return bool(options and options.include_usage)

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        usage = {"usage": None} if self._tells_usage else {}
        return {**self._common, "object": "chat.completion.chunk", "choices": [choice], **usage}

    # -- how it was made ------------------------------------------------------------------------------------------
    def _keep(self) -> None:
        self.service.said.keep(self._client, self._audio_id, self.text, self._expires_at)

    def _finish_reason(self) -> str:
        outcome = self.answering.outcome
        return "length" if outcome is not None and outcome.finish.reason == "length" else "stop"

    def usage(self) -> dict[str, Any]:
        """Tokens of the text by the tokenizer of what wrote it (by the talker's where that does not tell), and frames
        of the codec as tokens of audio."""
        outcome, speaking = self.answering.outcome, self.answering.speaking
        prompt = outcome.prompt_tokens if outcome else None
        written = outcome.tokens if outcome else None
        if prompt is None:
            prompt = sum(self.service.count_tokens(m["content"]) for m in self.answering.question.messages)
        if written is None:
            written = self.service.count_tokens(self.text)
        frames = speaking.tally.frames if speaking is not None else 0
        cached = outcome.cached_tokens if outcome else 0
        details: dict[str, int] = {"text_tokens": written, "audio_tokens": frames, "reasoning_tokens": 0}
        if outcome is not None and outcome.statistics is not None:
            details |= _kept(outcome.statistics)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": written + frames,
            "total_tokens": prompt + written + frames,
            "prompt_tokens_details": {"text_tokens": prompt, "audio_tokens": 0, "cached_tokens": cached},
            "completion_tokens_details": details,
        }

    def metrics(self) -> dict[str, Any]:
        """Milliseconds since the request, what drafting gave, and how many messages did not fit."""
        answering = self.answering
        first_s = answering.first_text_s
        outcome = answering.outcome
        return {
            "time_to_first_token_ms": None if first_s is None else _ms(first_s + self._written_before_s),
            "time_to_first_audio_ms": None if self._first_audio_s is None else _ms(self._first_audio_s),
            "generation_time_ms": _ms(answering.ended_s),
            "queue_time_ms": _ms(self._written_before_s),
            "dropped_messages": answering.question.dropped,
            "speculative_decoding": _speculation(outcome.statistics if outcome else None),
        }


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)


def _kept(statistics: Statistics) -> dict[str, int]:
    kept, tried = sum(statistics.kept), sum(statistics.tried)
    return {"accepted_prediction_tokens": kept, "rejected_prediction_tokens": tried - kept}


def _speculation(statistics: Statistics | None) -> dict[str, Any] | None:
    """The names are those of vLLM; a draft behind a wrong one is not counted. ``acceptance_histogram``: steps by how
    many drafts they kept."""
    if statistics is None or not statistics.tried:
        return None
    kept = [statistics.forwards, *statistics.kept, 0]
    histogram = {str(n): kept[n] - kept[n + 1] for n in range(len(kept) - 1) if kept[n] > kept[n + 1]}
    return {
        "num_spec_steps": statistics.forwards,
        "num_accepted_draft_tokens": sum(statistics.kept),
        "mean_acceptance_length": round(statistics.tokens_per_forward, 4),
        "acceptance_per_depth": [round(rate, 4) for rate in statistics.acceptance],
        "acceptance_histogram": histogram,
    }
