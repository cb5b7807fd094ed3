"""Text -> teachers -> audio with a manifest: in parallel, and going on where a kill stopped it.

1. collect the sentences and their splits, 2. give each voice its share of them, 3. leave out what the manifest
already holds, 4. speak batches in worker processes, each on one core, 5. write audio, then its rows, 6. add recordings
(:mod:`speech_mtp.corpus.importing`), 7. report.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from speech_mtp import audio
from speech_mtp.corpus.checks import AudioRules, fit
from speech_mtp.corpus.cutting import PieceRules
from speech_mtp.corpus.importing import RecordingPlan, import_recordings, notice
from speech_mtp.corpus.manifest import (
    MANIFEST,
    REJECTS,
    JsonLines,
    ManifestEntry,
    Reject,
    as_line,
    read_manifest,
    read_rejects,
)
from speech_mtp.corpus.processes import as_spec, in_processes, plugged
from speech_mtp.corpus.recorded import Treatment
from speech_mtp.corpus.report import report
from speech_mtp.corpus.selfwrite import WriteConfig, answered, expand_prompts, read_prompts, write
from speech_mtp.corpus.sentences import SentenceRules
from speech_mtp.corpus.teachers.base import SAMPLE_RATE, Teacher
from speech_mtp.corpus.texts import Script, TextSource, load_script, stable_fraction
from speech_mtp.files import replacing
from speech_mtp.progress import Progress
from speech_mtp.text.g2p.base import G2P, read_text
from speech_mtp.text.phonemes import render
from speech_mtp.threads import processors

REPORT, NOTICE = "report.json", "NOTICE"
Writer = Callable[[], tuple[Any, Any]]


class VoicePlan(BaseModel):
    """A ``voice`` of a ``teacher`` (plug-in name, or a mapping with ``name``) and the share of sentences it speaks."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    teacher: str | dict[str, Any]
    voice: str
    share: float = Field(default=1.0, gt=0, le=1)


class CorpusConfig(BaseModel):
    """One corpus: ``texts`` spoken by ``voices``, ``recordings``, or both. ``workers`` 0 means one per core.

    ``write`` (optional) makes self-written text first. Recordings are cut by ``pieces`` and aligned by the phoneme head
    of the codec ``aligner``; ``pitch`` false leaves their pitch to the stage that lays the corpus out, one process.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    out: Path
    texts: list[TextSource] = []
    voices: list[VoicePlan] = []
    recordings: list[RecordingPlan] = []
    write: WriteConfig | None = None
    g2p: str | dict[str, Any] = "hibari"
    sentences: SentenceRules = SentenceRules()
    audio: AudioRules = AudioRules()
    pieces: PieceRules = PieceRules()
    aligner: str = "tiny-en"
    pitch: bool = True
    coverage_words: int = Field(default=20_000, ge=0)
    seed: int = 0
    workers: int = Field(default=0, ge=0)
    batch: int = Field(default=32, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> CorpusConfig:
        voices, sources = [plan.voice for plan in self.voices], [plan.name for plan in self.recordings]
        if not (voices or sources):
            raise ValueError("there is nothing to make: add voices with texts, or recordings")
        if bool(voices) != bool(self.texts):
            raise ValueError("voices need texts, and texts need voices; add what is missing")
        if len(set(voices)) < len(voices):
            raise ValueError("each voice may be planned once; add up the shares of the one that is there twice")
        if len(set(voices + sources)) < len(voices + sources):
            raise ValueError("two recordings have one name, or that of a voice; rename one")
        if sources and self.pieces.max_seconds > self.audio.max_seconds:
            raise ValueError("pieces.max_seconds is more than audio.max_seconds allows; lower it or raise that")
        return self


@dataclass(frozen=True)
class Job:
    """One utterance to be made."""

    id: str
    text: str
    voice: str
    split: str
    seed: int


def build_corpus(config: CorpusConfig, writer: Writer | None = None) -> dict[str, Any]:
    """Make what is missing of the corpus in ``config.out`` and return its report, which is also written there.

    ``writer`` returns a causal LM and its tokenizer; it is called if text remains to be written (``config.write``).
    Raises ``ValueError`` or ``FileNotFoundError`` for unusable settings and texts, before any audio is made.
    """
    for recording in config.recordings:
        recording.open()  # what is wrong in the recipe is said before hours of speech are made
    rejected_text = _speak_texts(config, writer) if config.voices else Counter()
    if config.recordings:
        treatment = Treatment(
            config.out, as_spec(config.g2p), config.aligner, config.pieces, config.audio, config.pitch
        )
        import_recordings(config.recordings, treatment, config.workers or processors())
        with replacing(config.out / NOTICE) as path:
            path.write_text(notice(config.recordings), encoding="utf-8")
    figures = report(config.out, rejected_text, config.coverage_words)
    with replacing(config.out / REPORT) as path:
        path.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return figures


def _speak_texts(config: CorpusConfig, writer: Writer | None) -> Counter[str]:
    """Let the voices speak what is missing; how many pieces of text were refused for which reason."""
    plans = {plan.voice: plan for plan in config.voices}
    for plan in plans.values():
        plugged("corpus.teachers", as_spec(plan.teacher)).check_voice(plan.voice)
    if config.write is not None:
        _write_text(config.write, writer)
    script = load_script(config.texts, config.sentences, config.coverage_words, config.seed)
    with JsonLines(config.out / MANIFEST) as manifest, JsonLines(config.out / REJECTS) as rejects:
        finished = {row.id for row in read_manifest(config.out)} | {r.id for r in read_rejects(config.out)}
        batches = _batches([job for job in plan_jobs(config, script) if job.id not in finished], config.batch)
        progress, audio_s = Progress("corpus", "utterances", sum(map(len, batches))), 0.0
        tasks = [
            (batch, as_spec(plans[batch[0].voice].teacher), as_spec(config.g2p), config.audio, config.out)
            for batch in batches
        ]
        for made in in_processes(speak_batch, tasks, min(config.workers or processors(), max(1, len(tasks)))):
            manifest.append(as_line(item) for item in made if isinstance(item, ManifestEntry))
            rejects.append(as_line(item) for item in made if isinstance(item, Reject))
            audio_s += sum(item.seconds for item in made if isinstance(item, ManifestEntry))
            progress.advance(len(made), f"{audio_s / 3600:.2f} h")
        progress.close()
    return script.rejects


def _write_text(config: WriteConfig, writer: Writer | None) -> None:
    prompts = expand_prompts(read_prompts(config.prompts), config.texts, config.seed)
    if answered(config.out, prompts) == len(prompts):
        return
    if writer is None:
        raise ValueError(
            f"{config.out} is not complete; name a backbone that writes it, or remove the section `write`."
        )
    model, tokenizer = writer()
    write(model, tokenizer, prompts, config)


def plan_jobs(config: CorpusConfig, script: Script) -> list[Job]:
    """The utterances of all voices. Whether a voice speaks a sentence, and with which seed, depends on these two."""
    jobs: list[Job] = []
    for plan in config.voices:
        for sentence in script.sentences:
            key = f"{config.seed}:{plan.voice}:{sentence.text}"
            if stable_fraction(f"share:{key}") < plan.share:
                digest = hashlib.blake2b(key.encode(), digest_size=8)
                name = f"{plan.voice}-{digest.hexdigest()}"
                seed = int.from_bytes(digest.digest()[:4]) >> 1
                jobs.append(Job(name, sentence.text, plan.voice, sentence.split, seed))
    return jobs


def _batches(jobs: list[Job], size: int) -> list[list[Job]]:
    """Batches of one voice each, mixed, so that a corpus that is still growing has all voices in proportion."""
    by_voice: dict[str, list[Job]] = {}
    for job in sorted(jobs, key=lambda job: job.id):  # ids are hashes: a stable shuffle
        by_voice.setdefault(job.voice, []).append(job)
    batches = [voice[i : i + size] for voice in by_voice.values() for i in range(0, len(voice), size)]
    return sorted(batches, key=lambda batch: stable_fraction(batch[0].id))


def speak_batch(jobs: list[Job], teacher: str, g2p: str, rules: AudioRules, out: Path) -> list[ManifestEntry | Reject]:
    """Speak, check and store the utterances of one batch; ``teacher`` and ``g2p`` are plug-in specs in JSON."""
    return [_speak(job, plugged("corpus.teachers", teacher), plugged("text.g2p", g2p), rules, out) for job in jobs]


def _speak(job: Job, teacher: Teacher, g2p: G2P, rules: AudioRules, out: Path) -> ManifestEntry | Reject:
    try:
        spoken = teacher.synthesize(job.text, job.voice, job.seed)
        phonemes = render(read_text(g2p, job.text))
    except ValueError as error:
        return Reject(job.id, job.text, job.voice, str(error))
    utterance, reason = fit(spoken, job.text, rules)
    if reason is not None:
        return Reject(job.id, job.text, job.voice, reason)
    name = f"audio/{job.voice}/{job.id[len(job.voice) + 1 :][:2]}/{job.id}.flac"
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    audio.write(out / name, torch.from_numpy(utterance.wave), SAMPLE_RATE)
    return ManifestEntry(
        id=job.id,
        text=job.text,
        phonemes=phonemes,
        voice=job.voice,
        seconds=round(len(utterance.wave) / SAMPLE_RATE, 4),
        seed=job.seed,
        split=job.split,
        audio=name,
        licence=teacher.licence,
        f0_hz=None if utterance.f0_hz is None else [round(float(hz), 1) for hz in utterance.f0_hz],
        f0_rate_hz=utterance.f0_rate_hz,
    )
