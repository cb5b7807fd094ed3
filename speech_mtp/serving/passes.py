"""Passes: what a browser holds in place of an API key, once it has shown one.

A page of this server cannot send a header with a navigation or with a WebSocket, and should not keep the key itself.
A pass is a cookie that tells which key it stands for and until when, signed with that key: nothing is kept here, it
holds after a restart, and it ends when the operator takes the key away.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable, Sequence

COOKIE = "speech_mtp_pass"
LIFE_S = 12 * 3600


class Passes:
    """Passes for ``keys``. ``clock`` gives seconds since 1970."""

    def __init__(self, keys: Sequence[str], clock: Callable[[], float] = time.time) -> None:
        self._keys = [key.encode() for key in keys]
        self._clock = clock

    def number_of(self, key: str) -> int | None:
        """Which of the keys ``key`` is; None: none of them. All are compared, in constant time."""
        matches = [hmac.compare_digest(key.encode(errors="replace"), known) for known in self._keys]
        return matches.index(True) if any(matches) else None

    def issue(self, key: str) -> str | None:
        """A pass for whoever shows ``key``; None if it is none of the keys."""
        number = self.number_of(key)
        return None if number is None else self._signed(number, int(self._clock()) + LIFE_S)

    def holder(self, value: str) -> int | None:
        """The number of the key that a pass stands for; None if it is none, or has run out."""
        number, _, rest = value.partition(".")
        until = rest.partition(".")[0]
        if not (_is_count(number) and _is_count(until)) or int(number) >= len(self._keys):
            return None
        genuine = hmac.compare_digest(value.encode(errors="replace"), self._signed(int(number), int(until)).encode())
        return int(number) if genuine and self._clock() < int(until) else None

    def _signed(self, number: int, until: int) -> str:
        signed = hmac.new(self._keys[number], f"pass until {until}".encode(), hashlib.sha256)
        return f"{number}.{until}.{signed.hexdigest()}"


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 16
