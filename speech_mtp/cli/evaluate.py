"""Measuring models: ``eval speech``, ``eval speakers``, ``eval drafts``, ``eval text``, ``eval
completion``, ``eval objectives``, ``eval tokenizers``."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speech_mtp.cli.shared import (
    Backbone,
    BestOf,
    Device,
    Lexicon,
    Model,
    Seed,
    StreamTemperatures,
    Temperature,
    Threads,
    Voice,
    check_dtype,
    check_output,
    check_texts,
    chosen_dtype,
    in_blocks,
    listed,
    load_head,
    load_model,
    load_text_lm,
    only,
    read_lines,
    sampling_of,
    summary,
    write_report,
)
from speech_mtp.progress import Telling

if TYPE_CHECKING:
    from torch import Tensor

    from speech_mtp.evaluation.judges import Judges
    from speech_mtp.lm.bundle import SpeechModel
    from speech_mtp.streaming.timed import Utterance
    from speech_mtp.types import Sampling

Sources = Annotated[str, typer.Option(help="Where documents come from: stdlib,{name: files, paths: [texts/*.txt]}.")]
DevFraction = Annotated[float, typer.Option(min=0, max=1, help="The share of documents that was held out.")]

Recogniser = Annotated[
    str | None,
    typer.Option(help="Who hears the words, in place of Whisper tiny.en: pocketsphinx, {name: faster_whisper, ...}."),
]

group = typer.Typer(rich_markup_mode=None, help="Measure a model or a codec.")


@group.command("speech")
def eval_speech(
    sentences: Annotated[list[Path], typer.Option(help="A text file with one sentence a line; may be repeated.")],
    out: Annotated[Path, typer.Option("--json", help="File for the report.")],
    opinions: Annotated[
        int | None, typer.Option(min=0, help="Opinion scores of so many sentences, the first ones; the words of all.")
    ] = None,
    voice: Annotated[str | None, typer.Option(help="Name of a voice; by default every voice in turn.")] = None,
    reference: Annotated[Path | None, typer.Option(help="A recording of the voice, to compare speakers with.")] = None,
    model: Model = "tiny-en",
    teacher: Annotated[
        str | None, typer.Option(help="A teacher that speaks in place of a model: hibari, kokoro, piper.")
    ] = None,
    backbone: Backbone = None,
    lexicon: Lexicon = None,
    seed: Seed = None,
    temperature: Temperature = None,
    stream_temperatures: StreamTemperatures = None,
    best_of: BestOf = 1,
    recogniser: Recogniser = None,
    also_heard_by: Annotated[
        list[str] | None, typer.Option(help="A second recogniser, whose words are in the report too; may be repeated.")
    ] = None,
    threads: Threads = None,
) -> None:
    """Word errors, success, opinion scores, speaker similarity and speed; the worst voice's figures come first.

    Until the report is whole, what was judged is kept beside it as .jsonl, and a run that was cut off goes on;
    times are those of the run in which a sentence was spoken.
    """
    check_output(out, (".json",))
    from speech_mtp import audio, hub
    from speech_mtp.evaluation.journal import Journal, computed_by
    from speech_mtp.evaluation.speech_report import speech_report, word_rate

    files = {path: _texts(path) for path in sentences}
    if len({path.stem for path in files}) < len(sentences):
        raise ValueError("Files of --sentences are told apart by their names without the ending; give each its own.")
    texts = [text for found in files.values() for text in found]
    recording = audio.read(reference, mono=True) if reference else None
    judges, judge = judges_of(recogniser, also_heard_by or ())
    speakers: dict[str, Callable[[str], Utterance]]
    if teacher is None:
        loaded = load_model(model, backbone, threads=threads, lexicon=lexicon)
        sampling = sampling_of(loaded, seed, temperature, stream_temperatures)
        speakers = _voices_of(loaded, voice, sampling, best_of)
        who: dict[str, Any] = {"model": model}
        settings = {"recogniser": judge, "sampling": asdict(sampling), "best_of": best_of}
    else:
        ours = {"model": model != "tiny-en", "backbone": backbone, "lexicon": lexicon, "temperature": temperature}
        ours |= {"stream-temperatures": stream_temperatures, "best-of": best_of > 1, "threads": threads}
        given = next((name for name, value in ours.items() if value not in (None, False)), None)
        if given:
            raise ValueError(f"--{given} is of a model that speaks; leave it out with --teacher.")
        speakers = _teachers(teacher, voice, seed or 0)
        who, settings = {"teacher": teacher}, {"recogniser": judge, "seed": seed or 0}
    made_of = {
        "weights": _digest(hub.find_model(model)) if teacher is None else None,
        **computed_by(),
        "backbone": backbone,
        "lexicon": lexicon and lexicon.read_text("utf-8"),
        "texts": texts,
        "opinions": opinions,
        "also_heard_by": also_heard_by or [],
    }
    journal = Journal(out.with_suffix(".jsonl"), {**who, **settings, **made_of})
    reports = {}
    for name, say in speakers.items():
        known = recording or (_recording_of(model, name) if teacher is None else None)
        report = speech_report(say, texts, known, judges, opinions, journal, name)
        if len(files) > 1:  # easy and hard sentences differ more than models do
            rows = iter(report["rows"])
            report["files"] = {path.stem: word_rate(list(islice(rows, len(found)))) for path, found in files.items()}
        reports[name] = report
        print(f"{name}: {summary(report)}", flush=True)
    worst = max(reports, key=lambda name: reports[name]["wer"])
    figures = {k: v for k, v in reports[worst].items() if k != "rows"}
    write_report(out, {**who, "voice": worst, **figures, **settings, "voices": reports})
    journal.done(all(row["voice"] in reports for row in journal.rows))


def _digest(folder: Path) -> str:
    """Another one when the weights or the settings of a model have changed."""
    from speech_mtp.lm.fingerprint import sha256

    files = [path for path in sorted(folder.rglob("*")) if path.name == "config.json" or path.suffix == ".safetensors"]
    found = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _texts(path: Path) -> list[str]:
    """The lines of a file, all of which can be spoken."""
    from speech_mtp.evaluation.wer import normalize

    lines = read_lines(path)
    check_texts(lines, path)
    for number, line in enumerate(lines, start=1):
        if not normalize(line):
            raise ValueError(f"Line {number} of {path} has no word to count ({line!r}); remove it.")
    return lines


def _voices_of(
    model: SpeechModel, voice: str | None, sampling: Sampling, best_of: int
) -> dict[str, Callable[[str], Utterance]]:
    """What says a text in each voice, or in ``voice`` alone."""
    from speech_mtp.streaming.timed import speak_timed, warm_up

    if voice is not None:
        model.timbre(voice)
    warm_up(model)

    def say(name: str, text: str) -> Utterance:
        return speak_timed(model, text, name, sampling, best_of)

    return {name: partial(say, name) for name in ([voice] if voice else model.voices)}


def _teachers(spec: str, voice: str | None, seed: int) -> dict[str, Callable[[str], Utterance]]:
    """The same of a teacher, whose sound comes as a whole."""
    import torch

    from speech_mtp import plugins
    from speech_mtp.corpus.teachers.base import SAMPLE_RATE
    from speech_mtp.streaming.timed import WARM_UP, Utterance
    from speech_mtp.types import Finish

    teacher = plugins.build("corpus.teachers", only("teacher", spec))
    names = teacher.voices if voice is None else (voice,)
    teacher.synthesize(WARM_UP, names[0], seed)

    def say(name: str, text: str) -> Utterance:
        began = time.perf_counter()
        wave = torch.from_numpy(teacher.synthesize(text, name, seed).wave)
        spent = time.perf_counter() - began
        return Utterance(wave, SAMPLE_RATE, [], 1, 0, Finish("stop"), spent, spent)

    return {name: partial(say, name) for name in names}


def judges_of(recogniser: str | None, others: Sequence[str] = ()) -> tuple[Judges, str]:
    """The judges, of which ``recogniser`` transcribes, and what it is called: as it was named, for its settings count.
    ``others`` are heard beside it."""
    from speech_mtp.evaluation.judges import Judges, check_installed

    check_installed()
    names = [recogniser or "whisper-tiny.en", *others]
    if len(set(names)) < len(names):
        raise ValueError(f"A recogniser is named twice: {', '.join(names)}; leave one out.")
    more = {spec: _recogniser("also-heard-by", spec) for spec in others}
    if recogniser is None:
        return Judges(others=more), names[0]
    return Judges(_recogniser("recogniser", recogniser), others=more), names[0]


def _recogniser(option: str, spec: str) -> Callable[[Tensor, int], str]:
    from speech_mtp import plugins
    from speech_mtp.evaluation.judge_input import judge_wave
    from speech_mtp.frontends.base import Recogniser as Frontend

    found = plugins.build("frontends", only(option, spec))
    if not isinstance(found, Frontend):
        raise ValueError(f"--{option} is {spec!r}, which is no recogniser; name one of frontends.")
    return lambda wave, rate: found.transcribe(judge_wave(wave, rate)).text


def _recording_of(model: str, voice: str) -> tuple[Any, int] | None:
    """The reference recording that a model folder may hold: ``voices/<voice>.wav`` or ``.flac``."""
    from speech_mtp import audio, hub

    paths = [hub.find_model(model) / "voices" / f"{voice}{suffix}" for suffix in audio.FORMATS]
    return next((audio.read(path, mono=True) for path in paths if path.is_file()), None)


@group.command("speakers")
def eval_speakers(
    contenders: Annotated[
        list[str], typer.Argument(help="NAME=FILE,FILE: reports of eval speech on the same sentences.")
    ],
    out: Annotated[Path, typer.Option("--json", help="File for the report.")],
) -> None:
    """Models and teachers side by side, by what eval speech has told of them; the first is what others are compared
    with."""
    check_output(out, (".json",))
    from speech_mtp.evaluation.speech_study import compare, comparison_table

    sides: dict[str, list[Path]] = {}
    for given in contenders:
        name, _, listed_files = given.partition("=")
        files = [Path(file) for file in listed_files.split(",") if file]
        if not name or not files:
            raise ValueError(f"{given!r} does not say NAME=FILE; write tiny-en=a.json,b.json.")
        if name in sides:
            raise ValueError(f"{name} is named twice; put its reports behind one name, with commas between.")
        sides[name] = files
    every = [file.resolve() for files in sides.values() for file in files]
    twice = next((file for file in every if every.count(file) > 1), None)
    if twice or out.resolve() in every:
        where = "given twice" if twice else "to be written over"
        raise ValueError(f"The report {twice or out} is {where}; give each once, and another file to --json.")
    report = compare(sides)
    print(comparison_table(report))
    write_report(out, report)


@group.command("drafts")
def eval_drafts(
    heads: Annotated[str, typer.Option(help="Folders of draft heads trained on the model's speech LM: a,b.")],
    sentences: Annotated[Path, typer.Option(help="A text file with one text a line.")],
    out: Annotated[Path, typer.Option("--json", help="File for the report.")],
    rules: Annotated[str, typer.Option(help="Names: chain,{name: tree, ...}.")] = "chain,tree",
    temperatures: Annotated[str, typer.Option(help="Several: a,b.")] = "0.3,0.8",
    limit: Annotated[int | None, typer.Option(min=1, help="So many of the sentences, the first ones.")] = None,
    decoded: Annotated[int | None, typer.Option(min=1, help="So many of these are decoded by the rules too.")] = None,
    voice: Voice = None,
    model: Model = "tiny-en",
    backbone: Backbone = None,
    seed: Seed = None,
    threads: Threads = None,
) -> None:
    """Heads that draft groups of speech: agreement with the model by channel and depth, groups kept a forward, whether
    the codes are those of plain decoding, and the cost of a step's parts."""
    check_output(out, (".json",))
    lines = read_lines(sentences)[:limit]
    check_texts(lines, sentences)
    from speech_mtp import hub
    from speech_mtp.evaluation.speech_drafts import speech_drafts, tell
    from speech_mtp.streaming.feed import sentences as normalised

    warm = [float(t) for t in temperatures.split(",")]
    loaded = load_model(model, backbone, threads=threads)
    found = {name: hub.load_head(hub.find_head(name), loaded.lm) for name in heads.split(",")}
    units = [loaded.maker.make([text]) for line in lines for text in normalised(line)]
    told = {
        t: [tell(loaded.lm, one, loaded.timbre(voice), sampling_of(loaded, seed, t)) for one in units] for t in warm
    }
    report = speech_drafts(loaded.lm, told, found, listed("rules", rules), decoded)
    write_report(
        out, {"model": model, "sentences": len(units), "seed": sampling_of(loaded, seed, None).seed, "heads": report}
    )


@group.command("text")
def eval_text(
    folder: Annotated[str, typer.Argument(help="Folder or hub id of a causal language model.")],
    out: Annotated[Path, typer.Option("--json", help="File for the report.")],
    sources: Sources = "stdlib",
    dev_fraction: DevFraction = 0.05,
    limit: Annotated[int | None, typer.Option(min=1, help="So many of the documents, the first ones.")] = None,
    length: Annotated[int, typer.Option(help="Tokens that are read at a time.")] = 512,
    ahead: Annotated[
        int | None, typer.Option(min=2, help="Also what it says itself of the token so far ahead (slow).")
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="With --ahead: sum over so many tokens between each.")] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="With --ahead: draw so many continuations.")] = None,
    dtype: str = "fp32",
    against: Annotated[
        str | None, typer.Option(help="Also how near it is to the same model in this dtype (fp32).")
    ] = None,
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """Held-out loss of a language model: nats a token and bits a byte, for any tokenizer."""
    check_output(out, (".json",))
    from speech_mtp import plugins
    from speech_mtp.corpus.document_store import held_out
    from speech_mtp.evaluation.marginal import Between, ahead_report
    from speech_mtp.evaluation.text_loss import fidelity, text_loss
    from speech_mtp.lm.document_ids import Encoder

    named = [plugins.build("corpus.documents", spec) for spec in listed("sources", sources)]
    between = Between(top, samples)
    for name in (dtype, against or dtype):
        check_dtype(name)
    dtype = chosen_dtype(dtype, folder, device, compile=False)
    if ahead is not None and in_blocks(dtype):
        raise ValueError(f"--ahead asks the model's own layers, which {dtype} does without; use fp32 or bf16.")
    if ahead is None and between != Between():
        raise ValueError("--top and --samples say how --ahead looks ahead; give it, or leave them out.")
    lm = load_text_lm(folder, dtype, device, threads=threads)
    encoder = Encoder(lm.tokenizer)
    texts = islice((document.text for source in named for document in held_out(source, dev_fraction)), limit)
    documents = [(len(text.encode()), encoder.ids([text])[0].tolist()) for text in texts]
    more = {}
    if ahead is not None:
        more["ahead"] = ahead_report(lm, (ids for _, ids in documents), length, ahead, between, Telling())
    if against is not None:
        exact = load_text_lm(folder, against, device, threads=threads)
        more["against"] = {"dtype": against, **fidelity(lm, exact, (ids for _, ids in documents), length, Telling())}
    report = {**text_loss(lm, documents, length, Telling()), **more}
    print(summary({name: report[name]["value"] for name in ("loss", "bits_per_byte")}))
    write_report(out, {"model": folder, "dtype": dtype, "sources": sources, "dev_fraction": dev_fraction, **report})


@group.command("completion")
def eval_completion(
    folder: Annotated[str, typer.Argument(help="Folder or hub id of a causal language model.")],
    out: Annotated[Path, typer.Option("--json", help="File for the report.")],
    functions: Annotated[int, typer.Option(min=1, help="So many Python functions, drawn, always the same.")] = 300,
    sources: Sources = "stdlib",
    dev_fraction: DevFraction = 0.05,
    head: Annotated[
        str | None, typer.Option(help="Draft with this head, packaged or a folder; no word changes.")
    ] = None,
    rule: Annotated[str | None, typer.Option(help="How to draft (default: what suits the head).")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")] = 0.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="A continuation ends there.")] = 128,
    dtype: str = "fp32",
    device: Device = "cpu",
    threads: Threads = None,
) -> None:
    """How a language model goes on with Python functions that were held out: lines that Python's parser takes, lines
    and functions to the letter, and what drafting gives."""
    check_output(out, (".json",))
    from random import Random

    from speech_mtp import plugins
    from speech_mtp.corpus.document_store import held_out
    from speech_mtp.decoding import catalogue
    from speech_mtp.evaluation.code_completion import completion_report, tasks_of
    from speech_mtp.types import Sampling

    named = [plugins.build("corpus.documents", spec) for spec in listed("sources", sources)]
    sampling = Sampling(temperature=temperature)
    lm = load_text_lm(folder, dtype, device, threads=threads)
    drafter = load_head(head, lm) if head else None
    spec = listed("rule", rule)[0] if rule else catalogue.default(drafter)
    drafting = catalogue.build(spec, drafter)
    found = [
        task for source in named for document in held_out(source, dev_fraction) for task in tasks_of(document.text)
    ]
    if len(found) < functions:
        raise ValueError(
            f"Of what is held out {len(found)} functions can be gone on with, and {functions} were asked for; ask for "
            "fewer (--functions), or hold out more."
        )
    tasks = Random(0).sample(found, functions)
    report = completion_report(lm, tasks, drafting, sampling, max_new_tokens, Telling())
    print(summary({name: report[name]["value"] for name in ("valid_lines", "next_line")}))
    who = {"model": folder, "head": head, "rule": catalogue.label(spec)}
    write_report(out, {**who, "sources": sources, "dev_fraction": dev_fraction, **report})


@group.command("objectives")
def eval_objectives(
    folder: Annotated[
        Path, typer.Argument(help="A study: folders <objective>/<seed>, as recipes/objectives/study.sh.")
    ],
    out: Annotated[Path, typer.Option("--json", help="File for the report.")],
    plot: Annotated[Path | None, typer.Option(help="Draw loss over steps and seconds: a PNG file.")] = None,
) -> None:
    """Objectives of trunks side by side, over seeds, against the next token alone."""
    check_files(out, plot)
    from speech_mtp.evaluation import objective_study as module
    from speech_mtp.evaluation.plots import objective_curves

    report = module.study(folder)
    _tell_study(folder, report, module.study_table(report), out, plot, partial(objective_curves, report, folder))


@group.command("tokenizers")
def eval_tokenizers(
    folder: Annotated[Path, typer.Argument(help="A study: folders <codec>, as recipes/tokenizer_study/run.sh.")],
    out: Annotated[Path, typer.Option("--json", help="File for the report.")],
    plot: Annotated[Path | None, typer.Option(help="Draw what codes cost and what talkers get wrong: PNG.")] = None,
    base: Annotated[str, typer.Option(help="The codec that the others' word errors are compared with.")] = "coupled",
) -> None:
    """Codecs side by side, by what a talker makes of the codes of each."""
    check_files(out, plot)
    from speech_mtp.evaluation import tokenizer_study as module
    from speech_mtp.evaluation.plots import tokenizer_bars

    report = module.study(folder, base)
    _tell_study(folder, report, module.study_table(report), out, plot, partial(tokenizer_bars, report))


def check_files(out: Path, plot: Path | None) -> None:
    """Refuse, before any work, a report or a picture that cannot be written."""
    check_output(out, (".json",))
    if plot is not None:
        check_output(plot, (".png",))


def _tell_study(
    folder: Path, report: dict[str, Any], table: str, out: Path, plot: Path | None, draw: Callable[[Path], None]
) -> None:
    """Print the ``table``, draw the picture if there is to be one, and write the report."""
    print(table)
    if plot is not None:
        draw(plot)
    write_report(out, {"study": str(folder), **report})
