"""What a client has set for its session, and what it is told is in force.

Clients send what they like: what is unknown or makes no sense here is left out of account, never refused, because some
clients end at the first error. Only a value of the wrong JSON type is an error.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from speech_mtp.serving.errors import ApiError

PCM = {"type": "audio/pcm", "rate": 24000}
SERVER_VAD: dict[str, Any] = {
    "type": "server_vad",
    "threshold": 0.5,
    "prefix_padding_ms": 300,
    "silence_duration_ms": 500,
    "idle_timeout_ms": None,
    "create_response": True,
    "interrupt_response": True,
}
EAGER_SILENCE_MS = {"low": 1000, "medium": 600, "high": 300, "auto": 600}
"""Semantic turn detection is silence of a length by its eagerness."""
MOST_INSTRUCTIONS = 16_384
EXTENSIONS = ("speech_mtp.words", "speech_mtp.drafting", "speech_mtp.figures")
FORMATS = ("audio/pcm", "audio/pcmu", "audio/pcma")
STORED = ("tools", "tool_choice", "tracing", "truncation", "prompt", "parallel_tool_calls", "reasoning")
"""Told back, and without effect."""


class SessionConfig:
    """The settings of one session; ``default_voice`` until another is asked for."""

    def __init__(self, default_voice: str) -> None:
        self.instructions = ""
        self.modalities = ["audio"]
        self.max_output_tokens: int | None = None  # None: as many as the model writes
        self.voice = default_voice
        self.speed = 1.0
        self.input_format: dict[str, Any] = dict(PCM)
        self.output_format: dict[str, Any] = dict(PCM)
        self.noise_reduction: dict[str, Any] | None = None
        self.transcription: dict[str, Any] | None = None
        self.turn_detection: dict[str, Any] | None = dict(SERVER_VAD)
        self.include: list[str] = []
        self.extension: dict[str, Any] = {"drafting": True, "half_duplex": False}
        self.stored: dict[str, Any] = {"tools": [], "tool_choice": "auto", "tracing": None, "truncation": "auto"}

    @property
    def spoken(self) -> bool:
        """Whether answers are sound."""
        return "audio" in self.modalities

    @property
    def silence_ms(self) -> float:
        """Silence that ends a turn."""
        found = self.turn_detection or SERVER_VAD
        if found["type"] == "semantic_vad":
            return EAGER_SILENCE_MS[found["eagerness"]]
        return float(found["silence_duration_ms"])

    def copied(self) -> SessionConfig:
        """One that changes alone."""
        return deepcopy(self)

    def update(self, asked: Any) -> None:
        """Take in a ``session``: what is absent stays. Raises ApiError 400 for what is no session."""
        if not isinstance(asked, dict):
            raise ApiError(400, "session must be an object.", "session", "invalid_value")
        kind = asked.get("type", "realtime")
        if kind != "realtime":
            raise ApiError(400, "Only sessions of type realtime are held here.", "session.type", "invalid_session_type")
        self._update_answers(asked)
        audio = asked.get("audio")
        if isinstance(audio, dict):
            self._update_input(audio.get("input"))
            self._update_output(audio.get("output"))
        if isinstance(asked.get("include"), list):
            self.include = [name for name in asked["include"] if name in EXTENSIONS]
        if isinstance(asked.get("speech_mtp"), dict):
            ours = {k: v for k, v in asked["speech_mtp"].items() if k in self.extension and isinstance(v, bool)}
            self.extension = {**self.extension, **ours}
        self.stored |= {name: asked[name] for name in STORED if name in asked}

    def _update_answers(self, asked: dict[str, Any]) -> None:
        """What is said, and how much of it; also of a ``response``."""
        if "instructions" in asked:
            self.instructions = _text(asked["instructions"], "instructions", MOST_INSTRUCTIONS)
        modalities = asked.get("output_modalities")
        if isinstance(modalities, list) and modalities:
            self.modalities = ["audio"] if "audio" in modalities else ["text"]
        longest = asked.get("max_output_tokens")
        if longest == "inf":
            self.max_output_tokens = None
        elif isinstance(longest, int) and not isinstance(longest, bool) and longest > 0:
            self.max_output_tokens = longest

    def _update_input(self, asked: Any) -> None:
        if not isinstance(asked, dict):
            return
        self.input_format = _format(asked.get("format"), self.input_format)
        if "noise_reduction" in asked:
            self.noise_reduction = _object_or_none(asked["noise_reduction"])
        if "transcription" in asked:
            self.transcription = _object_or_none(asked["transcription"])
        if "turn_detection" in asked:
            self.turn_detection = _turn_detection(asked["turn_detection"])

    def _update_output(self, asked: Any) -> None:
        if not isinstance(asked, dict):
            return
        self.output_format = _format(asked.get("format"), self.output_format)
        voice = asked.get("voice")
        if isinstance(voice, dict):
            voice = voice.get("id")
        if isinstance(voice, str):
            self.voice = voice
        speed = asked.get("speed")
        if isinstance(speed, int | float) and not isinstance(speed, bool):
            self.speed = min(max(float(speed), 0.25), 1.5)

    def for_response(self, asked: dict[str, Any]) -> SessionConfig:
        """The settings of one response, which says what is different."""
        found = self.copied()
        found._update_answers(asked)
        audio = asked.get("audio")
        if isinstance(audio, dict):
            found._update_output(audio.get("output"))
        return found

    def effective(self, session_id: str, model: str, expires_at: int) -> dict[str, Any]:
        """The whole session as a client is told."""
        return {
            "type": "realtime",
            "object": "realtime.session",
            "id": session_id,
            "model": model,
            "expires_at": expires_at,
            "output_modalities": self.modalities,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens or "inf",
            "audio": {
                "input": {
                    "format": self.input_format,
                    "noise_reduction": self.noise_reduction,
                    "transcription": self.transcription,
                    "turn_detection": self.turn_detection,
                },
                "output": {"format": self.output_format, "voice": self.voice, "speed": self.speed},
            },
            "include": self.include or None,
            "speech_mtp": self.extension,
            **self.stored,
        }


def _text(value: Any, where: str, most: int) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > most:
        raise ApiError(
            400, f"{where} must be a text of at most {most} characters.", f"session.{where}", "invalid_value"
        )
    return value


def _object_or_none(value: Any) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


def _format(asked: Any, present: dict[str, Any]) -> dict[str, Any]:
    """The format that is asked for, if there is such a one; the telephone's have their own rate, pcm has one."""
    if not isinstance(asked, dict) or asked.get("type") not in FORMATS:
        return present
    return dict(PCM) if asked["type"] == "audio/pcm" else {"type": asked["type"]}


def _turn_detection(asked: Any) -> dict[str, Any] | None:
    if not isinstance(asked, dict):
        return None
    switches = {
        name: asked[name] if isinstance(asked.get(name), bool) else True
        for name in ("create_response", "interrupt_response")
    }
    if asked.get("type") == "semantic_vad":
        eagerness = asked.get("eagerness")
        return {
            "type": "semantic_vad",
            "eagerness": eagerness if isinstance(eagerness, str) and eagerness in EAGER_SILENCE_MS else "auto",
            **switches,
        }
    found = {**SERVER_VAD, **switches}
    bounds = {"threshold": (0.0, 1.0), "prefix_padding_ms": (0, 5000), "silence_duration_ms": (100, 10_000)}
    for name, (least, most) in bounds.items():
        value = asked.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            found[name] = min(max(value, least), most)
    idle = asked.get("idle_timeout_ms")
    if isinstance(idle, int) and not isinstance(idle, bool) and idle > 0:
        found["idle_timeout_ms"] = min(max(idle, 1000), 600_000)
    return found
