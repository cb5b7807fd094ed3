"""Many streams at once against a clock: do they start soon, and does the sound ever run out?

Streams join at even distances within the first second, and each is played from its first sound on. The scheduler ticks
as fast as it can, as it does in a service; nothing is simulated but the listener.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import quantiles

from speech_mtp.lm.bundle import SpeechModel
from speech_mtp.streaming.scheduler import Pace, Scheduler
from speech_mtp.streaming.stream import Stream

AHEAD_S = 2.0
"""Seconds of sound that a stream is given ahead of its listener."""


@dataclass
class Listener:
    """Plays one stream: ``heard_s`` of sound have come, ``gaps`` times it ran dry before more came."""

    stream: Stream
    joined_s: float
    first_s: float | None = None
    heard_s: float = 0.0
    gaps: int = 0
    end_s: float = 0.0  # when what has come will have been played

    def listen(self, now: float) -> None:
        """Take what has come by ``now``."""
        seconds = sum(len(chunk.wave) for chunk in self.stream.take()) / self.stream.model.codec.spec.sample_rate
        if not seconds:
            return
        if self.first_s is None:
            self.first_s, self.end_s = now - self.joined_s, now
        elif now > self.end_s:
            self.gaps += 1
        self.heard_s += seconds
        self.end_s = max(self.end_s, now) + seconds


def streams_at_once(
    model: SpeechModel, texts: Sequence[str], count: int, codec_thread: bool = True
) -> dict[str, float | int]:
    """``count`` streams, each of which speaks one of ``texts`` in turn.

    ``load`` is the time that the scheduler worked as a share of the time that passed; ``rtf`` that time per second of
    sound of all streams together; ``first_audio_ms_*`` from joining to the first sound; ``underruns`` how often a
    listener heard a gap.
    """
    scheduler = Scheduler(model, max_streams=count, pace=Pace(ahead_s=AHEAD_S), codec_thread=codec_thread)
    began, worked_s = time.monotonic(), 0.0
    listeners: list[Listener] = []
    while len(listeners) < count or not all(one.stream.done for one in listeners):
        now = time.monotonic() - began
        if len(listeners) < count and now >= len(listeners) / count:
            listeners.append(_join(scheduler, model, texts[len(listeners) % len(texts)], len(listeners), now))
        before = time.monotonic()
        worked = scheduler.tick()
        if worked:
            worked_s += time.monotonic() - before
        else:
            time.sleep(0.002)
        now = time.monotonic() - began
        for listener in listeners:
            listener.listen(now)
    total_s = time.monotonic() - began
    scheduler.close()
    first = sorted(1000 * (one.first_s or 0.0) for one in listeners)
    heard_s = sum(one.heard_s for one in listeners)
    return {
        "streams": count,
        "rtf": round(worked_s / heard_s, 4),
        "load": round(worked_s / total_s, 3),
        "first_audio_ms_p50": round(_quantile(first, 50), 1),
        "first_audio_ms_p95": round(_quantile(first, 95), 1),
        "underruns": sum(one.gaps for one in listeners),
        "seconds": round(heard_s, 2),
    }


def _join(scheduler: Scheduler, model: SpeechModel, text: str, number: int, now: float) -> Listener:
    voices = list(model.voices)
    stream = scheduler.speak(voices[number % len(voices)], replace(model.sampling, seed=number))
    stream.push(text)
    stream.finish_text()
    return Listener(stream, now)


def _quantile(values: Sequence[float], percent: int) -> float:
    if len(values) == 1:
        return values[0]
    return quantiles(values, n=100, method="inclusive")[percent - 1]
