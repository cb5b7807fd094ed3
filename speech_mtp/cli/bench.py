"""How fast text and speech are made, and whether text is the same: ``bench text``, ``identity``, ``forward``,
``streams``."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speech_mtp.cli.shared import (
    Backbone,
    Compile,
    Device,
    Model,
    TextBackbone,
    Threads,
    check_output,
    check_texts,
    is_invariant,
    listed,
    load_head,
    load_model,
    load_text_lm,
    read_lines,
    write_report,
)

if TYPE_CHECKING:
    from speech_mtp.evaluation.contenders import Contender
    from speech_mtp.evaluation.journal import Journal
    from speech_mtp.evaluation.questions import Question
    from speech_mtp.heads.base import MTPHead
    from speech_mtp.lm.bundle import SpeechModel
    from speech_mtp.lm.text_lm import TextLM

group = typer.Typer(rich_markup_mode=None, help="Compare heads and rules on text; measure many streams of speech.")

Questions = Annotated[
    Path, typer.Option(help="A .jsonl file of objects with turns or prompt, or a .txt file of lines.")
]
Out = Annotated[Path, typer.Option("--json", help="File for the report; beside it, measurements as .jsonl.")]
Heads = Annotated[str, typer.Option(help="all or default of the packaged ones, or names and folders: a,b; none.")]
Rules = Annotated[str, typer.Option(help="all, or names: chain,{name: tree, ...}.")]
Dtypes = Annotated[str, typer.Option(help="Several of fp32, bf16, bf16-invariant, q4, int8: a,b.")]
Limit = Annotated[int | None, typer.Option(min=1, help="So many of the questions, the first ones.")]
Tokens = Annotated[int, typer.Option(min=1, help="Of every answer.")]


@group.command("text")
def bench_text(
    questions: Questions,
    out: Out,
    heads: Heads = "default",
    rules: Rules = "all",
    dtypes: Dtypes = "fp32",
    max_new_tokens: Tokens = 128,
    limit: Limit = None,
    png: Annotated[Path | None, typer.Option(help="File for a picture.")] = None,
    gguf: Annotated[Path | None, typer.Option(help="The same model for llama.cpp, which then takes part.")] = None,
    native: Annotated[
        Path | None, typer.Option(help="A folder of export deepseek, for transformers; its code is run.")
    ] = None,
    backbone: TextBackbone = None,
    device: Device = "cpu",
    compile: Compile = False,
    threads: Threads = None,
) -> None:
    """Tokens per forward, acceptance and speed (reading prompts and decoding apart too) of every head with every rule,
    and of others; can be interrupted."""
    check_output(out, (".json",))
    if png is not None:
        check_output(png, (".png",))
    from dataclasses import fields

    from speech_mtp.evaluation import plots
    from speech_mtp.evaluation.contenders import llama_cpp, native_mtp, ours, theirs
    from speech_mtp.evaluation.questions import read_questions
    from speech_mtp.evaluation.tables import speed_table
    from speech_mtp.evaluation.text_bench import Tally, text_bench

    asked = read_questions(questions, limit)
    chosen, named = _rules(rules), _named(heads)
    if native is not None and all(is_invariant(name) for name in listed("dtypes", dtypes)):
        raise ValueError("--native is for transformers, which has no invariant dtype; add bf16 or fp32 to --dtypes.")
    contenders: list[Contender] = []
    weights: dict[str, str] = {}
    for dtype, lm in _models(dtypes, backbone, device, compile, threads).items():
        loaded = _load_heads(named, lm, weights)
        contenders += ours(lm, dtype, loaded, chosen)
        if lm.invariant:
            continue  # nobody else has it
        contenders += theirs(lm, dtype)
        if native is not None:
            contenders.append(native_mtp(lm, dtype, native))
    if gguf is not None:
        contenders.append(llama_cpp(lm, gguf))
    measured = [entry.name for entry in fields(Tally)]
    journal = _journal(out, asked, contenders, weights, max_new_tokens, lm, compiled=compile, measured=measured)
    report = text_bench(lm, contenders, asked, max_new_tokens, journal)
    print(speed_table(report))
    if png is not None:
        plots.speed_bars(report, png)
    write_report(out, {"settings": journal.settings, **report})


@group.command("identity")
def bench_identity(
    questions: Questions,
    out: Out,
    heads: Heads = "default",
    rules: Rules = "all",
    dtypes: Dtypes = "fp32",
    max_new_tokens: Tokens = 128,
    limit: Limit = None,
    batch: Annotated[int, typer.Option(min=1, help="Prompts at a time.")] = 16,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Draw among the tokens that make up so much of the chance.")] = 1.0,
    backbone: TextBackbone = None,
    device: Device = "cpu",
    threads: Threads = None,
) -> int:
    """Answers to the first turns against plain decoding (drawn: of the same seed) and, greedy, transformers. Exit code
    1 for a fault; what bf16 rounds otherwise is none."""
    check_output(out, (".json",))
    from speech_mtp.evaluation.contenders import ours, theirs
    from speech_mtp.evaluation.identity import Group, faults, identity
    from speech_mtp.evaluation.questions import read_questions
    from speech_mtp.evaluation.tables import identity_table
    from speech_mtp.lm.chat import opening
    from speech_mtp.types import Sampling

    asked, sampling = read_questions(questions, limit), Sampling(temperature=temperature, top_p=top_p)
    chosen, named = _rules(rules), _named(heads)
    groups: list[Group] = []
    weights: dict[str, str] = {}
    for dtype, lm in _models(dtypes, backbone, device, threads=threads).items():
        pairs = ours(lm, dtype, _load_heads(named, lm, weights), chosen, sampling)
        peers = [] if lm.invariant or temperature else theirs(lm, dtype, lookup=False)
        references = {"vanilla": pairs[0], **{peer.program: peer for peer in peers}}
        groups.append(Group(lm, [*pairs, *peers], references, sampling))
    prompts = [opening(lm.tokenizer, [{"role": "user", "content": question.turns[0]}]) for question in asked]
    everybody = [contender for group in groups for contender in group.contenders]
    drawn = {"temperature": temperature, "top_p": top_p} if temperature else {}
    journal = _journal(out, asked, everybody, weights, max_new_tokens, lm, batch=batch, **drawn)
    report = identity(groups, prompts, max_new_tokens, batch, journal)
    print(identity_table(report))
    write_report(out, {"settings": journal.settings, **report})
    return 1 if faults(report) else 0


@group.command("forward")
def bench_forward(dtypes: Dtypes = "fp32,bf16", backbone: TextBackbone = None, threads: Threads = None) -> None:
    """Where the time of a forward goes on this CPU: parts of a layer as transformers does them, and as we do."""
    import torch

    from speech_mtp.evaluation.forward_parts import forward_parts
    from speech_mtp.evaluation.tables import aligned

    if any(is_invariant(name) for name in listed("dtypes", dtypes)):
        raise ValueError("The parts of a forward are timed in fp32 and bf16; leave invariant dtypes out.")
    lines = []
    for dtype, lm in _models(dtypes, backbone, "cpu", threads=threads).items():
        for row in forward_parts(lm.shape(), lm.dtype):
            times = (f"{row['plain_us']:.0f}", f"{row['ours_us']:.0f}")
            lines.append([str(row["part"]), str(row["rows"]), dtype, *times])
    print(f"Microseconds, {torch.get_num_threads()} threads.")
    print(aligned(["part", "rows", "dtype", "plain", "ours"], lines))


@group.command("streams")
def bench_streams(
    out: Annotated[Path, typer.Option("--json", help="File for the report.")],
    streams: Annotated[str, typer.Option(help="How many at once: 1,2,4.")] = "1,2,4,8,16",
    sentences: Annotated[Path | None, typer.Option(help="A text file; every stream speaks one of its lines.")] = None,
    model: Model = "tiny-en",
    backbone: Backbone = None,
    codec_thread: Annotated[bool, typer.Option(help="Run the codec in a second thread.")] = True,
    writing: Annotated[
        bool, typer.Option("--writing", help="Also a chat that writes while two streams speak.")
    ] = False,
    threads: Threads = None,
) -> None:
    """Streams that join within a second, against a clock: real-time factor, first audio, and gaps that a listener
    hears."""
    check_output(out, (".json",))
    counts = _counts(streams)
    texts = TEXTS if sentences is None else read_lines(sentences)
    check_texts(texts, sentences)
    from speech_mtp.evaluation.tables import aligned
    from speech_mtp.streaming.at_once import streams_at_once
    from speech_mtp.streaming.timed import warm_up

    loaded = load_model(model, backbone, None, threads)
    warm_up(loaded)
    rows = [streams_at_once(loaded, texts, count, codec_thread) for count in counts]
    print(aligned(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))
    report: dict[str, Any] = {"settings": {"model": model, "codec_thread": codec_thread}, "rows": rows}
    if writing:
        report["writing"] = _beside_text(loaded, texts, backbone, threads)
        print(aligned(list(report["writing"]), [[str(value) for value in report["writing"].values()]]))
    write_report(out, report)


TEXTS = [
    "Good morning, did you sleep well? The train to the city leaves at nine from platform three, so there is no hurry.",
    "The library has moved to the old town hall. It opens at ten, and on Fridays it stays open until eight.",
    "I have read your letter twice, and I think that you are right. Let us meet next week and talk about it.",
]
"""What streams say when nothing else is asked for: some eight seconds each."""


@group.command("service")
def bench_service(
    out: Annotated[Path, typer.Option("--json", help="File for the report.")],
    url: Annotated[str, typer.Option(help="The service, as in http://127.0.0.1:8000.")] = "http://127.0.0.1:8000",
    api_key_file: Annotated[Path | None, typer.Option(help="A file whose first key is sent.")] = None,
    streams: Annotated[str, typer.Option(help="How many clients at once: 1,2,4.")] = "1,2,4,8,16",
    mix: Annotated[
        str, typer.Option(help="What they are in turn, of speech, chat, realtime and spoken: speech,chat.")
    ] = "speech",
    question: Annotated[Path | None, typer.Option(help="A recording of a question, for spoken.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="For which each number of clients asks.")] = 30.0,
    leave: Annotated[float, typer.Option(min=0, max=1, help="The share of answers that are left in the middle.")] = 0.0,
    plot: Annotated[Path | None, typer.Option(help="A PNG of the first sounds and gaps.")] = None,
) -> None:
    """Clients of a running voice service, who listen as players do: first sound, gaps, errors."""
    check_output(out, (".json",))
    import asyncio

    from speech_mtp.evaluation.tables import aligned
    from speech_mtp.serving import check_extra

    check_extra()
    from speech_mtp.serving.load import Load, measure, mixed, recording
    from speech_mtp.serving.settings import read_keys

    kinds, counts = mix.split(","), _counts(streams)
    mixed(kinds, 1)
    if ("spoken" in kinds) != (question is not None):
        raise ValueError("--question is the recording that spoken clients ask with; give both or neither.")
    key = read_keys(api_key_file)[0] if api_key_file is not None else None
    load = Load(url.rstrip("/"), key, recording(question) if question is not None else b"", leave)
    rows = asyncio.run(measure(load, kinds, counts, seconds))
    print(aligned(list(rows[0]), [[str(value) for value in row.values()] for row in rows]))
    write_report(out, {"settings": {"mix": kinds, "seconds": seconds, "leave": leave}, "rows": rows})
    if plot is not None:
        from speech_mtp.evaluation.plots import service_load

        service_load(rows, plot)


def _beside_text(model: SpeechModel, texts: list[str], backbone: str | None, threads: int | None) -> dict[str, Any]:
    from speech_mtp.streaming.at_once import text_beside_speech
    from speech_mtp.streaming.conversation import Writer

    return text_beside_speech(model, Writer(load_text_lm(backbone, "fp32", "cpu", threads=threads or 1)), texts)


def _counts(streams: str) -> list[int]:
    try:
        counts = [int(count) for count in streams.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise ValueError(f"--streams is {streams!r}; give numbers of streams, as in 1,2,4.")
    return counts


def _models(
    dtypes: str, backbone: str | None, device: str, compile: bool = False, threads: int | None = None
) -> dict[str, TextLM]:
    names = [str(dtype) for dtype in listed("dtypes", dtypes)]
    return {name: load_text_lm(backbone, name, device, compile, threads=threads) for name in names}


def _rules(rules: str) -> list[Any] | None:
    """The rules of ``--rules``; None: all."""
    from speech_mtp.decoding import catalogue

    if rules == "all":
        return None
    chosen = listed("rules", rules)
    for spec in chosen:
        catalogue.find(spec)
    return chosen


def _named(heads: str) -> list[str]:
    """The heads of ``--heads``, all of which are there."""
    from speech_mtp import hub

    special = {"all": hub.known_heads(), "default": [hub.DEFAULT_HEAD], "none": []}
    chosen = special[heads] if heads in special else [str(name) for name in listed("heads", heads)]
    for name in chosen:
        hub.find_head(name)
    return chosen


def _load_heads(names: list[str], lm: TextLM, weights: dict[str, str]) -> dict[str, MTPHead]:
    """The heads by name; ``weights`` takes a short name of what each one knows."""
    from speech_mtp.evaluation.contenders import weights_of

    loaded = {name: load_head(name, lm) for name in names}
    weights |= {f"{name} {lm.dtype}": weights_of(head) for name, head in loaded.items()}
    return loaded


def _journal(
    out: Path,
    questions: list[Question],
    contenders: list[Contender],
    weights: dict[str, str],
    max_new_tokens: int,
    lm: TextLM,
    **more: Any,
) -> Journal:
    import torch

    from speech_mtp.evaluation.journal import Journal, computed_by
    from speech_mtp.evaluation.questions import digest

    on_gpu = lm.device.type == "cuda"
    settings = {
        "questions": digest(questions),
        "max_new_tokens": max_new_tokens,
        "contenders": [contender.name for contender in contenders],
        "heads": weights,
        "backbone": lm.fingerprint,
        "device": torch.cuda.get_device_name(lm.device) if on_gpu else platform.processor() or platform.machine(),
        **computed_by(),
        **more,
    }
    return Journal(out.with_suffix(".jsonl"), settings)
