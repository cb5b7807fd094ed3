"""What an operator can set, with the limits that keep one client from harming the others."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from speech_mtp.voices.shelf import Capacity

OPENAI_VOICES = (
    "alloy",
    "ash",
    "ballad",
    "cedar",
    "coral",
    "echo",
    "fable",
    "marin",
    "nova",
    "onyx",
    "sage",
    "shimmer",
    "verse",
)
OPENAI_MODELS = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")
OPENAI_CHAT_MODELS = ("gpt-audio", "gpt-audio-mini", "gpt-4o-audio-preview", "gpt-4o-mini-audio-preview")
OPENAI_LISTENERS = ("whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-transcribe")
UPLOADS = {
    "/v1/audio/transcriptions": 25 * 2**20 + 2**16,
    "/v1/audio/voices": 10 * 2**20 + 2**16,
    "/v1/audio/voice_consents": 10 * 2**20 + 2**16,
    "/v1/chat/completions": 16 * 2**20,
}
"""Bytes of a request to paths that take a recording: OpenAI's limits of the file, and some for the other fields."""
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Settings:
    """``keys``: whoever sends none of them is refused; without any, everybody is served. ``public_lists``: voices and
    models may be listed without a key (Open WebUI asks so). ``allowed_hosts``: names in the header ``Host`` that are
    answered (``*``: all); ``allowed_origins``: pages of other hosts that may call. ``voice_aliases`` maps names of
    voices to those of the model; OpenAI's are spread over the model's voices.

    ``ahead_s``: seconds of sound that a listener gets ahead of real time, ``realtime_ahead_s`` in a realtime session,
    of which there may be ``max_sessions``, each for ``session_s``; ``backlog_s``: seconds that may wait for a
    client that does not read before its stream is held; ``stall_s``: for how long before it is cancelled;
    ``drain_s``: for how long streams may go on after SIGTERM; ``idle_s``: after which a silent socket is closed;
    ``head_s, body_s, upload_s``: within which a request's head, its body and a form with a file must have come.
    ``max_body`` bytes of a request (``max_bodies``: of the paths that take more), ``max_message`` of a socket's
    message; ``max_recording_s`` seconds of a recording that is heard. ``voices_dir``: where clients may leave voices
    and consents (None: they may not), as much as ``voice_capacity`` says; ``needs_consent``: no voice without one.
    """

    keys: tuple[str, ...] = ()
    public_lists: bool = False
    allowed_hosts: tuple[str, ...] = LOOPBACK
    allowed_origins: tuple[str, ...] = ()
    model_aliases: tuple[str, ...] = OPENAI_MODELS
    chat_aliases: tuple[str, ...] = OPENAI_CHAT_MODELS
    listener_aliases: tuple[str, ...] = OPENAI_LISTENERS
    voice_aliases: dict[str, str] = field(default_factory=dict)
    max_streams: int = 8
    max_queue: int = 16
    max_chats: int = 8
    max_sessions: int = 64
    ahead_s: float = 4.0
    realtime_ahead_s: float = 2.0
    session_s: float = 3600.0
    backlog_s: float = 8.0
    stall_s: float = 20.0
    drain_s: float = 30.0
    idle_s: float = 60.0
    max_input: int = 4096
    max_batch: int = 32
    max_body: int = 2**20
    max_bodies: dict[str, int] = field(default_factory=lambda: dict(UPLOADS))
    max_message: int = 24 * 2**20
    max_recording_s: float = 600.0
    voices_dir: Path | None = None
    voice_capacity: Capacity = field(default_factory=Capacity)
    needs_consent: bool = True
    max_connections: int = 2048
    head_s: float = 10.0
    body_s: float = 30.0
    upload_s: float = 120.0
    docs: bool = False


def read_keys(path: Path) -> tuple[str, ...]:
    """The keys of a file, one a line; empty lines and lines that begin with ``#`` are left out.

    Raises ValueError for a key that a browser could not send, and for a file without any.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no key file {path}.")
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ValueError(f"The key file {path} holds no key; write one a line.")
    for number, key in enumerate(keys, start=1):
        check_key(key, f"Key {number} of {path}")
    return keys


def check_key(key: str, where: str) -> None:
    """Raise ValueError unless ``key`` can stand in a header and in a WebSocket sub-protocol; it is not told."""
    if len(key) < 16 or not all(c.isascii() and (c.isalnum() or c in "-_") for c in key):
        raise ValueError(
            f"{where} cannot be used: a key has at least 16 letters, digits, - and _; "
            'make one with python -c "import secrets; print(secrets.token_urlsafe())".'
        )
