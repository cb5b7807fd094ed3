"""Short-lived keys for browsers (``ek_...``), which open one realtime session and nothing else.

A secret carries its own content, signed, so that any server with the same API keys can check it: who asked for it,
until when it holds, and the settings of its session.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import time
from typing import Any

from speech_mtp.serving.errors import ApiError

PREFIX = "ek_"
MOST_SESSION = 4096
"""Bytes of a session's settings: a secret is sent as a header."""
SIGNATURE_BYTES = 32


class ClientSecrets:
    """Issues and reads the secrets of a server with ``keys``; without any, those of this process alone."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        material = "\n".join(sorted(keys)).encode() if keys else secrets.token_bytes(32)
        self._key = hashlib.sha256(b"speech_mtp realtime client secrets\n" + material).digest()

    def issue(self, client: str, expires_at: int, session: dict[str, Any]) -> str:
        """A secret for ``client``. Raises ApiError 400 for a session that is too large for one."""
        content = json.dumps([client, expires_at, session], separators=(",", ":")).encode()
        if len(content) > MOST_SESSION:
            message = "The session is too large for a secret; send it with session.update when you have connected."
            raise ApiError(400, message, "session", "session_too_large")
        return PREFIX + base64.urlsafe_b64encode(self._sign(content) + content).decode().rstrip("=")

    def read(self, secret: str) -> tuple[str, dict[str, Any]] | None:
        """For whom ``secret`` was issued and the session's settings; None if it is none of ours, or too old."""
        try:
            sent = secret.removeprefix(PREFIX)
            data = base64.b64decode(sent + "=" * (-len(sent) % 4), b"-_", validate=True)
        except ValueError:
            return None
        signature, content = data[:SIGNATURE_BYTES], data[SIGNATURE_BYTES:]
        if not secret.startswith(PREFIX) or not hmac.compare_digest(signature, self._sign(content)):
            return None
        client, expires_at, session = json.loads(content)
        return (client, session) if time.time() < expires_at else None

    def _sign(self, content: bytes) -> bytes:
        return hmac.digest(self._key, content, "sha256")
