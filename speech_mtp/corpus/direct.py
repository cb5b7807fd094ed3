"""Teachers speak straight into audio stores, one store a process: speech to train on within minutes.

The corpus of :mod:`speech_mtp.corpus.build` keeps every sentence as a file with its manifest; here nothing lies between
the teacher and the training. Job n is the same on every machine and for every number of processes: its sentence,
voice and seed are functions of n, and no sentence comes twice before all have had their turn. A run that was killed
goes on with the jobs that its stores lack.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from speech_mtp import plugins
from speech_mtp.corpus.checks import AudioRules, fit
from speech_mtp.corpus.processes import in_processes
from speech_mtp.corpus.store import (
    PITCH_HOP,
    AudioStoreWriter,
    estimate_pitch,
    resample_pitch,
    rows_in,
)
from speech_mtp.corpus.teachers.base import Teacher, Utterance
from speech_mtp.corpus.told_durations import unit_ends_ms
from speech_mtp.progress import progress
from speech_mtp.text.g2p.base import G2P, read_text
from speech_mtp.text.phonemes import Unit, render


class VoiceShare(BaseModel):
    """``voices`` of a ``teacher`` (None: all of its voices) speak ``share`` of all sentences, evenly among them."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    teacher: str | dict[str, Any]
    voices: list[str] | None = None
    share: float = Field(gt=0)


@dataclass(frozen=True)
class Speech:
    """What is to be spoken: ``sentences`` and ``dev_sentences`` (a share ``dev`` of the jobs) in ``voices``, by the
    jobs from number ``first`` on."""

    sentences: list[str]
    dev_sentences: list[str]
    voices: list[VoiceShare]
    utterances: int
    dev: float = 0.02
    g2p: str = "hibari"
    rules: AudioRules = field(default_factory=AudioRules)
    first: int = 0


def read_sentences(paths: list[Path], characters: tuple[int, int]) -> list[str]:
    """The lines of ``paths`` from ``characters[0]`` to ``characters[1]`` long."""
    lines = [line.strip() for path in paths for line in path.read_text(encoding="utf-8").split("\n")]
    return [line for line in lines if characters[0] <= len(line) <= characters[1]]


def speak(speech: Speech, out: Path, workers: int, max_time_s: float | None = None) -> dict[str, float]:
    """Speak the jobs into the stores ``out/part00`` and so on, until all are done or ``max_time_s`` has passed."""
    for share in speech.voices:
        teacher = plugins.build("corpus.teachers", share.teacher)
        for voice in share.voices or []:
            teacher.check_voice(voice)
    until = time.time() + max_time_s if max_time_s else None
    jobs = [(speech, out, worker, workers, until) for worker in range(workers)]
    refused = sum(in_processes(_speak_part, jobs, workers))
    rows = rows_in(out)
    hours = sum(row.samples for row in rows) / 24_000 / 3600
    return {"utterances": len(rows), "hours": hours, "voices": len({row.voice for row in rows}), "refused": refused}


def _speak_part(speech: Speech, out: Path, worker: int, workers: int, until: float | None) -> int:
    """The jobs of one process; how many of them were refused."""
    teachers = [plugins.build("corpus.teachers", share.teacher) for share in speech.voices]
    g2p: G2P = plugins.build("text.g2p", speech.g2p)
    writer = AudioStoreWriter(out / f"part{worker:02}")
    done, refused = {row.id for row in rows_in(out)}, 0
    numbers = range(speech.first + worker, speech.first + speech.utterances, workers)
    what = "speak" if workers == 1 else f"speak, one of {workers} processes"
    for number in progress(numbers, what, "utterances") if worker == 0 else numbers:
        if until is not None and time.time() > until:
            break
        teacher, voice, text, split = _job(speech, teachers, number)
        name = f"{voice}-{number:06}"
        if name in done:
            continue
        try:
            utterance, reason = fit(teacher.synthesize(text, voice, number), text, speech.rules)
            units = read_text(g2p, text)
        except ValueError as error:
            reason = str(error)
        if reason is None:
            pitch, ends = _pitch(utterance), _ends_ms(utterance, units)
            writer.append(name, voice, text, render(units), split, utterance.wave, pitch, ends)
        refused += reason is not None
    writer.close()
    return refused


def _job(speech: Speech, teachers: list[Teacher], number: int) -> tuple[Teacher, str, str, str]:
    """Teacher, voice, sentence and split of job ``number``."""
    rng = np.random.default_rng((0x5AEA, number))
    shares = np.array([share.share for share in speech.voices])
    chosen = int(rng.choice(len(shares), p=shares / shares.sum()))
    voices = speech.voices[chosen].voices or teachers[chosen].voices
    earlier = int(number * speech.dev)  # jobs of the dev split before this one
    split = "dev" if int((number + 1) * speech.dev) > earlier else "train"
    texts, count = (speech.dev_sentences, earlier) if split == "dev" else (speech.sentences, number - earlier)
    turn, at = divmod(count, len(texts))
    return teachers[chosen], voices[rng.integers(len(voices))], texts[_order(len(texts), turn)[at]], split


@lru_cache(maxsize=4)
def _order(count: int, turn: int) -> NDArray[np.int64]:
    """In which order ``count`` sentences have their turn ``turn``."""
    return np.random.default_rng((0x04DE, turn)).permutation(count)


def _ends_ms(utterance: Utterance, units: list[Unit]) -> list[int] | None:
    if utterance.phonemes is None or utterance.ends_s is None:
        return None
    return unit_ends_ms(units, utterance.phonemes, utterance.ends_s)


def _pitch(utterance: Utterance) -> np.ndarray:
    steps = -(-len(utterance.wave) // PITCH_HOP)
    if utterance.f0_hz is None or utterance.f0_rate_hz is None:
        return estimate_pitch(utterance.wave, steps)
    return resample_pitch(utterance.f0_hz, utterance.f0_rate_hz, steps)
