"""Where somebody begins and stops to speak, from how likely each piece of sound is speech. Knows no sound."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Literal

Change = Literal["started", "paused", "resumed", "stopped"]

STEP_MS = 32
"""A piece of sound."""
LEAST_SPEECH_MS = 128
"""A cough or a click is shorter."""
LEAST_SPEECH_GUARDED_MS = 192
HYSTERESIS = 0.15
GUARD = 0.2
"""By how much speech must be likelier while the loudspeaker may be heard."""
PAUSE_MS = 192
"""Silence after which a turn has perhaps ended: what comes then can be got ready."""


@dataclass
class TurnDetector:
    """:meth:`push` probabilities. ``threshold`` begins speech; ``silence_ms`` of less ends it."""

    threshold: float = 0.5
    silence_ms: float = 500
    speaking: bool = False
    silent_ms: float = 0.0
    _loud: int = 0  # pieces of speech in a row, one quieter piece between them allowed
    _quiet: int = 0

    def push(self, probability: float, guarded: bool = False) -> Change | None:
        """The next piece. ``guarded``: sound of ours may be in it."""
        if self.speaking:
            return self._go_on(probability)
        self.silent_ms += STEP_MS
        bar = min(self.threshold + GUARD, 0.95) if guarded else self.threshold
        if probability >= bar:
            self._loud, self._quiet = self._loud + 1, 0
        else:
            self._quiet += 1
            if self._quiet > 1:
                self._loud = 0
        least = LEAST_SPEECH_GUARDED_MS if guarded else LEAST_SPEECH_MS
        if self._loud * STEP_MS < least:
            return None
        self.speaking, self.silent_ms, self._loud, self._quiet = True, 0.0, 0, 0
        return "started"

    def _go_on(self, probability: float) -> Change | None:
        if probability >= self.threshold - HYSTERESIS:
            had_paused, self.silent_ms = self.silent_ms >= PAUSE_MS, 0.0
            return "resumed" if had_paused else None
        self.silent_ms += STEP_MS
        if self.silent_ms >= self.silence_ms:
            self.speaking, self.silent_ms = False, 0.0
            return "stopped"
        return "paused" if self.silent_ms == ceil(PAUSE_MS / STEP_MS) * STEP_MS else None

    def reset(self) -> None:
        """Nobody speaks."""
        self.speaking, self.silent_ms, self._loud, self._quiet = False, 0.0, 0, 0
