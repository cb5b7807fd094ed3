"""Many streams at once against a clock: do they start soon, and does the sound ever run out?

Streams join at even distances within the first second, and each is played from its first sound on. The scheduler ticks
as fast as it can, as it does in a service; nothing is simulated but the listener.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from statistics import quantiles

from speech_mtp.lm.bundle import SpeechModel
from speech_mtp.streaming.conversation import Writer
from speech_mtp.streaming.playback import Playback
from speech_mtp.streaming.scheduler import Pace, Scheduler
from speech_mtp.streaming.stream import Stream

AHEAD_S = 1.5
"""Seconds of sound that a stream is given ahead of its listener."""


@dataclass
class Listener:
    """Plays one stream, which it joined at ``joined_s``."""

    stream: Stream
    joined_s: float
    playback: Playback = field(default_factory=Playback)

    @property
    def first_s(self) -> float | None:
        """How long it waited for the first sound."""
        return None if self.playback.first is None else self.playback.first - self.joined_s

    def listen(self, now: float) -> None:
        """Take what has come by ``now``."""
        rate = self.stream.model.codec.spec.sample_rate
        self.playback.hear(now, sum(len(chunk.wave) for chunk in self.stream.take()) / rate)

    def listens(self, now: float) -> bool:
        """Whether there is more to hear."""
        return not self.stream.done or now < self.playback.until


def streams_at_once(
    model: SpeechModel, texts: Sequence[str], count: int, codec_thread: bool = True
) -> dict[str, float | int]:
    """``count`` streams, each of which speaks one of ``texts`` in turn.

    ``load`` is the time of ticks that had work as a share of the time that passed, waits for the codec's thread
    included; ``rtf`` that time per second of sound of all streams together; ``first_audio_ms_*`` from joining to the
    first sound; ``underruns`` how often a listener heard a gap.
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
    first = sorted(1000 * one.first_s if one.first_s is not None else inf for one in listeners)
    heard_s = sum(one.playback.heard_s for one in listeners)
    return {
        "streams": count,
        "rtf": round(worked_s / heard_s, 4),
        "load": round(worked_s / total_s, 3),
        "first_audio_ms_p50": round(_quantile(first, 50), 1),
        "first_audio_ms_p95": round(_quantile(first, 95), 1),
        "underruns": sum(one.playback.gaps for one in listeners),
        "seconds": round(heard_s, 2),
    }


def text_beside_speech(
    model: SpeechModel, writer: Writer, texts: Sequence[str], count: int = 2, seconds: float = 40.0
) -> dict[str, float | int]:
    """A chat that writes without end, ``seconds`` long alone and as long beside ``count`` streams, one joining whenever
    one has been heard to its end: how much slower it writes, and how long a stream takes to its first sound."""
    scheduler = Scheduler(model, writer, max_streams=count, pace=Pace(ahead_s=AHEAD_S), codec_thread=True)
    talk = _Endless(scheduler)
    alone = talk.tokens_per_s(seconds, lambda: None)
    listeners: list[Listener] = []

    def keep_speaking() -> None:
        now = time.monotonic()
        for one in listeners:
            one.listen(now)
        while sum(one.listens(now) for one in listeners) < count:
            text = texts[len(listeners) % len(texts)]
            listeners.append(_join(scheduler, model, text, len(listeners), now))

    beside = talk.tokens_per_s(seconds, keep_speaking)
    scheduler.close()
    end = time.monotonic()  # who has not begun has waited for so long at least
    first = sorted(1000 * (end - one.joined_s if one.first_s is None else one.first_s) for one in listeners)
    return {
        "streams": count,
        "text_tokens_per_s_alone": round(alone, 2),
        "text_tokens_per_s": round(beside, 2),
        "text_slowdown": round(alone / beside, 3) if beside else inf,
        "first_audio_ms_p95": round(_quantile(first, 95), 1),
        "underruns": sum(one.playback.gaps for one in listeners),
        "joined": len(listeners),
    }


class _Endless:
    """A conversation that is asked again whenever it has answered."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.conversation = scheduler.chat(max_new_tokens=64)
        self.asked = 0

    def tokens_per_s(self, seconds: float, between: Callable[[], None]) -> float:
        """How fast it writes for ``seconds``; ``between`` is called between ticks."""
        written, before, began = 0, len(self.conversation.answer.tokens), time.monotonic()
        while time.monotonic() - began < seconds:
            if not self.conversation.writing:
                written, before = written + len(self.conversation.answer.tokens) - before, 0
                self._ask()
            between()
            self.scheduler.tick()
            self.conversation.take()
        written += len(self.conversation.answer.tokens) - before
        return written / (time.monotonic() - began)

    def _ask(self) -> None:
        if self.asked:
            self.conversation.close()
            self.conversation = self.scheduler.chat(max_new_tokens=64)
        self.asked += 1
        self.conversation.ask(f"Tell me {self.asked} things about the sea.")


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
