"""Figures for Prometheus: how soon, how fast, with how many gaps, and how full. No label is of a client's choosing."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from speech_mtp.serving.listening import Listening
from speech_mtp.serving.speaking import Speaking
from speech_mtp.streaming.authors import Outcome

SECONDS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2, 5, 10)
FACTORS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1, 1.5, 2)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """One registry for one service, so that several can live in one process."""

    def __init__(self, slots: int, frames_per_group: int) -> None:
        self.registry = CollectorRegistry()
        self._frames_per_group = frames_per_group
        r = self.registry
        self.requests = Counter("speech_mtp_requests", "Answers by route and status.", ["route", "status"], registry=r)
        self.utterances = Counter(
            "speech_mtp_utterances", "Utterances by why they ended.", ["finished_reason"], registry=r
        )
        self.first_audio = Histogram(
            "speech_mtp_first_audio_seconds", "From the request to its first sound.", buckets=SECONDS, registry=r
        )
        self.real_time_factor = Histogram(
            "speech_mtp_real_time_factor", "Seconds of work per second of sound.", buckets=FACTORS, registry=r
        )
        self.underruns = Counter("speech_mtp_underruns", "How often a listener heard a gap.", registry=r)
        self.audio = Counter("speech_mtp_audio_seconds", "Sound that was made.", registry=r)
        self.forwards = Counter("speech_mtp_forwards", "Steps of a row of the talker.", registry=r)
        self.tokens = Counter("speech_mtp_tokens", "Positions that these steps made.", registry=r)
        self.tokens_per_forward = Gauge("speech_mtp_tokens_per_forward", "Of all steps so far.", registry=r)
        self.running = Gauge("speech_mtp_streams_running", "Streams that speak.", registry=r)
        self.waiting = Gauge("speech_mtp_streams_waiting", "Streams in the queue.", registry=r)
        self.slots = Gauge("speech_mtp_slots", "Streams that may speak at a time.", registry=r)
        self.engine_steps = Gauge("speech_mtp_engine_steps", "Ticks of the engine that did something.", registry=r)
        self.engine_failures = Gauge("speech_mtp_engine_failures", "How often it had to start again.", registry=r)
        self.answers = Counter(
            "speech_mtp_answers", "Answers of chats by why they ended.", ["finished_reason"], registry=r
        )
        self.recordings = Counter(
            "speech_mtp_recordings", "Recordings that were recognised, by how they ended.", ["outcome"], registry=r
        )
        self.heard_seconds = Counter("speech_mtp_heard_seconds", "Seconds of these recordings.", registry=r)
        self.text_forwards = Counter("speech_mtp_text_forwards", "Steps of a row of the writer.", registry=r)
        self.text_tokens = Counter("speech_mtp_text_tokens", "Tokens that these steps wrote.", registry=r)
        self.slots.set(slots)
        self._steps = self._positions = 0

    def spoke(self, speaking: Speaking) -> None:
        """An utterance has ended, or was cancelled."""
        tally = speaking.tally
        reason = tally.finish.reason if tally.finish is not None else speaking.outcome
        self.utterances.labels(reason).inc()
        if tally.first_audio_s is not None:
            self.first_audio.observe(tally.first_audio_s)
        if tally.audio_s and reason in ("stop", "length", "runaway"):
            self.real_time_factor.observe(max(0.0, tally.ended_s - tally.rested_s) / tally.audio_s)
        self.underruns.inc(tally.underruns)
        self.audio.inc(tally.audio_s)
        positions = tally.frames // self._frames_per_group
        self.forwards.inc(tally.steps)
        self.tokens.inc(positions)
        self._steps, self._positions = self._steps + tally.steps, self._positions + positions
        if self._steps:
            self.tokens_per_forward.set(self._positions / self._steps)

    def wrote(self, outcome: Outcome | None) -> None:
        """An answer has ended, or broke off (None)."""
        self.answers.labels("cancelled" if outcome is None else outcome.finish.reason).inc()
        if outcome is not None and outcome.statistics is not None:
            self.text_forwards.inc(outcome.statistics.forwards)
            self.text_tokens.inc(outcome.statistics.emitted)

    def heard(self, listening: Listening) -> None:
        """A recording has been recognised, or not to its end."""
        self.recordings.labels(listening.outcome).inc()
        self.heard_seconds.inc(listening.duration_s)

    def exposition(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)
