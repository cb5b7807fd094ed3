"""How a response is made, while it is: for a client that wants to show it."""

from __future__ import annotations

import time
from typing import Any

from speech_mtp.serving.answering import Answering

EVERY_S = 0.25


class Figures:
    """Of one response that was asked for at ``began`` (``time.monotonic``)."""

    def __init__(self, began: float, answering: Answering, drafting: bool) -> None:
        self._began, self._answering, self._drafting = began, answering, drafting
        self._forwards = self._tokens = 0
        self._told = 0.0

    def take_steps(self) -> list[dict[str, Any]]:
        """The forwards of the language model since the last call, with the tokens that each made sure: all but the
        last of them were drafted."""
        steps = self._answering.take_steps()
        self._forwards += len(steps)
        self._tokens += sum(len(step) for step in steps)
        return [
            {"tokens": [{"text": text, "drafted": i < len(step) - 1} for i, text in enumerate(step)]} for step in steps
        ]

    def due(self, last: bool) -> bool:
        """Whether they are to be told now."""
        now = time.monotonic()
        if not last and now - self._told < EVERY_S:
            return False
        self._told = now
        return True

    def now(self, sent_s: float) -> dict[str, Any]:
        """As they are; ``sent_s`` seconds of sound have been sent."""
        now = time.monotonic()
        speaking = self._answering.speaking
        tally = speaking.tally if speaking is not None else None
        found: dict[str, Any] = {
            "drafting": self._drafting,
            "dropped_messages": self._answering.question.dropped,
            "forwards": self._forwards,
            "tokens": self._tokens,
            "tokens_per_forward": round(self._tokens / self._forwards, 3) if self._forwards else None,
            "first_audio_ms": None,
            "speech_steps_per_s": None,
            "real_time_factor": None,
            "buffered_s": None,
        }
        if tally is not None and tally.first_audio_s is not None:
            busy_s = max(now - tally.began - tally.rested_s, 1e-3)
            heard_s = now - tally.began - tally.first_audio_s
            found |= {
                "first_audio_ms": round(1000 * (tally.began - self._began + tally.first_audio_s)),
                "speech_steps_per_s": round(tally.steps / busy_s, 1),
                "real_time_factor": round(busy_s / tally.audio_s, 3) if tally.audio_s else None,
                "buffered_s": round(max(0.0, sent_s - heard_s), 2),
            }
        return found
