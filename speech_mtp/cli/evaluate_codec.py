"""``eval codec``: what a codec keeps, what it keeps apart, and what its codes tell."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speech_mtp.cli.evaluate import Recogniser, check_files, judges_of
from speech_mtp.cli.shared import CodecSource, Threads, codec_of, summary, write_report
from speech_mtp.progress import Telling

if TYPE_CHECKING:
    from torch import Tensor

    from speech_mtp.codecs.base import Codec
    from speech_mtp.evaluation.alignment import Aligner
    from speech_mtp.evaluation.codec_report import Sample
    from speech_mtp.types import CodecSpec

PARTS = ("quality", "words", "views", "probes", "swaps")


def eval_codec(
    out: Annotated[Path, typer.Option("--json", help="File for the report.")],
    audio_dir: Annotated[
        list[Path] | None, typer.Option("--audio", help="Folder of recordings, one folder a voice; may be repeated.")
    ] = None,
    corpus_dir: Annotated[
        list[Path] | None, typer.Option("--corpus", help="Folder of a corpus; may be repeated.")
    ] = None,
    split: Annotated[str, typer.Option(help="Which part of a corpus.")] = "dev",
    per_voice: Annotated[int, typer.Option(min=1, help="Recordings of each voice at most.")] = 50,
    opinions: Annotated[
        int | None,
        typer.Option(min=0, help="Opinion scores and melody of so many recordings, spread evenly; the words of all."),
    ] = None,
    codec: CodecSource = "tiny-en",
    parts: Annotated[str, typer.Option(help=f"What to measure, with commas between: {', '.join(PARTS)}.")] = (
        "quality,views,probes"
    ),
    per_voice_probes: Annotated[int, typer.Option(min=1, help="The same for the part 'probes'.")] = 60,
    probe_steps: Annotated[int, typer.Option(min=1, help="Training steps of each probe.")] = 600,
    swap_pairs: Annotated[int, typer.Option(min=1, help="Pairs of utterances of the part 'swaps'.")] = 20,
    aligner: Annotated[
        str,
        typer.Option(
            help="Codec whose phoneme head tells which phoneme a frame speaks; the same for all codecs. "
            "A corpus laid out for training may hold what the teacher told, which counts before it."
        ),
    ] = "tiny-en",
    plot: Annotated[Path | None, typer.Option(help="PNG file for a picture of 'views' and 'probes'.")] = None,
    recogniser: Recogniser = None,
    seed: int = 0,
    threads: Threads = None,
) -> None:
    """Quality (round trip, bit rate, code usage, timbre swap, agreement of voices, melody), the words that each voice
    loses in the round trip, and predictability: codes that stay in other views of a recording, what probes tell of each
    stream, and what swapping each stream changes.

    Until the report is whole, its parts are kept beside it as .jsonl, and a run that was cut off goes on.
    """
    check_files(out, plot)
    wanted = _parts(parts)
    if not audio_dir and not corpus_dir:
        raise ValueError("Give the recordings to evaluate on: --audio DIR or --corpus FOLDER.")
    from speech_mtp import hub
    from speech_mtp.corpus.samples import from_corpus, from_folder
    from speech_mtp.evaluation.codec_report import Sample, codec_report, words_by_voice
    from speech_mtp.evaluation.journal import Journal, computed_by
    from speech_mtp.evaluation.plots import predictability_bars
    from speech_mtp.evaluation.predictability_table import predictability_table
    from speech_mtp.evaluation.stream_swaps import stream_swaps
    from speech_mtp.evaluation.view_agreement import view_agreement
    from speech_mtp.lm.fingerprint import digest_of
    from speech_mtp.threads import use_threads

    use_threads(threads)
    judges, judge = judges_of(recogniser)
    loaded = hub.load_codec(codec_of(codec))

    def recordings(number: int) -> list[Sample]:
        rate = loaded.spec.sample_rate
        found = [sample for folder in audio_dir or () for sample in from_folder(folder, rate, number)]
        found += [sample for folder in corpus_dir or () for sample in from_corpus(folder, split, rate, number)]
        return [Sample(*sample) for sample in found]

    samples = recordings(per_voice)
    report: dict[str, Any] = {"codec": codec, "recogniser": judge}
    made_of = {
        "weights": digest_of(loaded),
        "recordings": _digest(samples),
        "recordings_of_probes": _digest(recordings(per_voice_probes)),  # not kept: there may be many
        **computed_by(),
        "probe_steps": probe_steps,
        "swap_pairs": swap_pairs,
        "opinions": opinions,
        "aligner": aligner,
        "seed": seed,
    }
    journal = Journal(out.with_suffix(".jsonl"), {**report, **made_of})
    measures: dict[str, Callable[[], Any]] = {
        "quality": lambda: codec_report(loaded, samples, judges, seed, opinions=opinions),
        "words": lambda: words_by_voice(loaded, samples, judges),
        "views": lambda: view_agreement(loaded, samples, seed, report=Telling()),
        "probes": lambda: _probes(loaded, recordings(per_voice_probes), aligner, probe_steps),
        "swaps": lambda: stream_swaps(loaded, samples, swap_pairs, judges, seed, Telling()),
    }
    for part in (part for part in PARTS if part in wanted):
        if not any(part in row for row in journal.rows):
            journal.add({part: measures[part]()})
        found = next(row[part] for row in journal.rows if part in row)
        report |= found if part == "quality" else {part: found}
        for line in _told(part, found):
            print(line, flush=True)
    print(predictability_table(report))
    if plot is not None:
        predictability_bars(report, plot)
        print(f"wrote {plot}")
    write_report(out, report)
    journal.done(all(part in wanted for row in journal.rows for part in row))


def _digest(samples: Iterable[Sample]) -> str:
    """Another one where a recording, or what is known of it, differs."""
    found = hashlib.sha256()
    for sample in samples:
        found.update(json.dumps([sample.voice, sample.text, sample.told]).encode())
        found.update(sample.wave.contiguous().numpy().data)
    return found.hexdigest()


def _told(part: str, found: Any) -> list[str]:
    """What is said of a part before the table of all."""
    if part == "quality":
        return [summary(found["round_trip"])]
    return [f"{voice}: {summary(counts)}" for voice, counts in found.items()] if part == "words" else []


def _parts(text: str) -> set[str]:
    from speech_mtp.plugins import nearest

    wanted = {part.strip() for part in text.split(",")}
    for part in sorted(wanted - set(PARTS)):
        raise ValueError(f"--parts has no {part!r}; {nearest(part, PARTS)}.")
    return wanted


def _probes(codec: Codec, samples: list[Sample], aligner: str, steps: int) -> dict[str, Any] | None:
    """None, and a word about it, where too few recordings have a text."""
    from speech_mtp.evaluation.alignment import aligned_utterances
    from speech_mtp.evaluation.stream_probes import FEWEST_SENTENCES, stream_probes
    from speech_mtp.text.phonemes import SYMBOLS

    spoken = [sample for sample in samples if sample.text]
    if len({sample.text for sample in spoken}) < FEWEST_SENTENCES:
        print(f"probes: left out, they need {FEWEST_SENTENCES} recordings of different sentences with their texts")
        return None
    tell = Telling()
    utterances = list(aligned_utterances(codec, spoken, told_or_heard(aligner), tell))
    told = sum(sample.told is not None for sample in spoken)
    heard = None if told == len(spoken) else aligner
    return {"aligner": heard, "told": told, **stream_probes(codec.spec, utterances, len(SYMBOLS), steps, tell)}


def told_or_heard(aligner: str) -> Aligner:
    """What the teacher told; else forced alignment by the phoneme head of the codec ``aligner``, and the text read by
    the packaged G2P, which are loaded for the first recording that needs them."""
    import torch

    from speech_mtp import audio, hub, plugins
    from speech_mtp.corpus.align import unit_of_frame
    from speech_mtp.corpus.told_durations import unit_at_frames
    from speech_mtp.text.g2p.base import read_text

    @cache
    def loaded() -> tuple[Any, Any]:
        return hub.load_aligner(aligner), plugins.build("text.g2p", "hibari")

    def align(sample: Sample, spec: CodecSpec) -> tuple[Tensor, Tensor, float] | None:
        if sample.told is not None:
            ids, ends_ms = sample.told
            frames = -(-len(sample.wave) // spec.samples_per_frame)
            return torch.tensor(ids), unit_at_frames(ends_ms, frames, spec.frame_rate_hz), spec.frame_rate_hz
        codec, g2p = loaded()
        laws = codec.phonemes_heard(audio.resample(sample.wave, spec.sample_rate, codec.spec.sample_rate))
        phonemes = torch.tensor([unit.id for unit in read_text(g2p, sample.text or "")])
        unit = unit_of_frame(laws, phonemes)
        return None if unit is None else (phonemes, unit, codec.spec.frame_rate_hz)

    return align
