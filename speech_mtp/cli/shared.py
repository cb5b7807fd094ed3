"""What the commands share: options, the checks before any work, texts in and reports out."""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speech_mtp.dtypes import DTYPES

if TYPE_CHECKING:
    from speech_mtp.heads.base import MTPHead
    from speech_mtp.lm.bundle import SpeechModel
    from speech_mtp.lm.text_lm import TextLM
    from speech_mtp.types import Sampling

Model = Annotated[str, typer.Option(help="Packaged name, folder or hub id.")]
Backbone = Annotated[str | None, typer.Option(help="Folder or hub id of the language model, if not found by itself.")]
CodecSource = Annotated[
    str, typer.Option(help="Packaged name, folder or hub id, or {name: encodec, source: FOLDER, num_codebooks: 8}.")
]
Voice = Annotated[str | None, typer.Option(help="Name of a voice; by default the model's first.")]
Lexicon = Annotated[Path | None, typer.Option(help="A file of words and how to read them: word TAB phonemes.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same audio.")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy.")]
StreamTemperatures = Annotated[
    str | None, typer.Option(help="Factors of the temperature, of the control channel and of each codebook: 0.5,1,1.5.")
]
BestOf = Annotated[
    int, typer.Option(min=1, max=16, help="Takes of each sentence, of which the one that is told most clearly is kept.")
]
Threads = Annotated[
    int | None,
    typer.Option(min=1, help="Threads of torch; by default SPEECH_MTP_THREADS, else 1 for speech, all for text."),
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Settings, as in train.rate=1e-4.")]


def text_of(text: str) -> str | Iterator[str]:
    if text == "-":
        return standard_input()
    return read_text(Path(text[1:])) if text.startswith("@") else text


def standard_input() -> Iterator[str]:
    """Standard input piece by piece, as it arrives."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        while piece := os.read(sys.stdin.fileno(), 4096):
            yield decoder.decode(piece)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise ValueError("Standard input is not text in UTF-8.") from error


def read_text(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"There is no text file {path}.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8.") from error


def read_lines(path: Path) -> list[str]:
    """The lines of a file, white space around it left out; an empty one in between is an error."""
    lines = read_text(path).strip().splitlines()
    empty = next((number for number, line in enumerate(lines, start=1) if not line.strip()), None)
    if empty or not lines:
        where = f"Line {empty} of the text in {path}" if empty else f"The file {path}"
        raise ValueError(f"{where} is empty; write one text a line.")
    return lines


def check_texts(texts: list[str], source: Path | None) -> None:
    """Refuse what cannot be spoken, naming its line in ``source``, before anything is loaded or written."""
    from speech_mtp.streaming.feed import sentences

    for number, text in enumerate(texts, start=1):
        try:
            sentences(text)
        except ValueError as error:
            if source is None:
                raise
            raise ValueError(f"Line {number} of {source} cannot be spoken: {error}") from error


def check_output(path: Path, suffixes: Iterable[str] | None = None, folder_exists: bool = True) -> None:
    """Refuse, before any work, a file that cannot be written."""
    from speech_mtp.audio import FORMATS

    suffixes = FORMATS if suffixes is None else suffixes
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"Cannot write {path}: the name must end in {' or '.join(suffixes)}.")
    if path.is_dir():
        raise OSError(f"Cannot write {path}: it is a folder; give the name of a file.")
    if folder_exists and not path.parent.is_dir():
        raise OSError(f"Cannot write {path}: there is no folder {path.parent}; create it first.")
    if path.parent.exists() and not os.access(path.parent, os.W_OK):
        raise OSError(f"Cannot write {path}: the folder {path.parent} is not writable; choose another.")


def load_model(
    model: str,
    backbone: str | None,
    group: int | None = None,
    threads: int | None = None,
    lexicon: Path | None = None,
) -> SpeechModel:
    from speech_mtp import hub

    loaded: SpeechModel = hub.load(model, backbone=backbone, threads=threads, lexicon=lexicon)
    made_for = loaded.lm.config.frames_per_group
    if group is not None and group != made_for:
        raise ValueError(f"Model {model} decodes {made_for} frames per step, not {group}; use --group {made_for}.")
    return loaded


def codec_of(text: str) -> Any:
    """The name, folder or hub id of a codec as it is, and ``{name: encodec, source: ...}`` as in a recipe."""
    from speech_mtp.config import parse_override

    return parse_override(f"codec={text}")[1] if text.startswith("{") else text


def sampling_of(
    model: SpeechModel, seed: int | None, temperature: float | None, stream_temperatures: str | None = None
) -> Sampling:
    given: dict[str, Any] = {"seed": seed, "temperature": temperature}
    if stream_temperatures is not None:
        given["stream_temperatures"] = _factors(stream_temperatures)
    found = replace(model.sampling, **{key: value for key, value in given.items() if value is not None})
    found.check_codebooks(len(model.lm.config.codebook_sizes))
    return found


def _factors(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--stream-temperatures is {text!r}; give numbers with commas between.") from None


def only(option: str, text: str) -> Any:
    """The one plug-in that an option names."""
    found = listed(option, text)
    if len(found) != 1:
        raise ValueError(f"--{option} is {text!r}; give one of them.")
    return found[0]


def summary(report: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in report.items() if isinstance(value, int | float))


def write_report(path: Path, report: Mapping[str, Any]) -> None:
    from speech_mtp.files import replacing

    with replacing(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {path}")


# -- text models ------------------------------------------------------------------------------------------------------
AUTO = "auto"
"""``q4`` for the packaged model, whose own file has these blocks, where the kernels can be compiled; else ``fp32``."""
TextBackbone = Annotated[
    str | None, typer.Option("--backbone", help="Folder or hub id of the language model; by default the packaged one.")
]
Device = Annotated[str, typer.Option(help="Where to compute, as torch names it: cpu, cuda, cuda:1.")]
Compile = Annotated[bool, typer.Option("--compile", help="Fuse small operations: faster after a slow start.")]


def load_text_lm(
    backbone: str | None,
    dtype: str,
    device: str,
    compile: bool = False,
    keep_layers: bool = True,
    threads: int | None = None,
) -> TextLM:
    """The causal LM in ``backbone`` (None or ``packaged``: that of the packaged model), loaded in ``dtype`` (or
    :data:`AUTO`) on ``device``, decoding with ``threads``. ``keep_layers`` as for ``TextLM.prepare``."""
    dtype = chosen_dtype(dtype, backbone, device, compile)
    check_dtype(dtype)
    precision = DTYPES[dtype]
    if precision.invariant and (compile or not device.startswith("cpu")):
        raise ValueError(f"{dtype} is for a CPU and is not compiled; use bf16 with --device {device} or --compile.")
    import torch

    from speech_mtp import hub
    from speech_mtp.lm.text_lm import TextLM
    from speech_mtp.threads import use_threads

    use_threads(threads)
    try:
        place = torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"The device {device!r} cannot be used here; use cpu, or cuda where there is a GPU."
        ) from error
    folder = hub.find_backbone(backbone)
    lm: TextLM = TextLM.from_folder(folder, getattr(torch, precision.dtype), device=place)
    if precision.blocks is None:
        return lm.prepare(keep_layers, compile=compile, invariant=precision.invariant)
    source = hub.backbone_source() if backbone in (None, hub.PACKAGED) else None
    return hub.into_blocks(lm, folder, precision.blocks, source, compile=compile)


def check_dtype(dtype: str) -> None:
    """Raise ValueError for a name that no dtype has."""
    if dtype not in (*DTYPES, AUTO):
        raise ValueError(f"The dtype is {dtype!r}; use {', '.join((*DTYPES, AUTO))}.")


def in_blocks(dtype: str) -> bool:
    """Whether a name of ``--dtype`` is one of weights in blocks."""
    return dtype in DTYPES and DTYPES[dtype].blocks is not None


def chosen_dtype(dtype: str, backbone: str | None, device: str, compile: bool) -> str:
    """``dtype``, or what :data:`AUTO` stands for."""
    if dtype != AUTO:
        return dtype
    from speech_mtp import hub
    from speech_mtp.nn.blocks import is_native

    if backbone not in (None, hub.PACKAGED) or device != "cpu" or compile or not is_native():
        return "fp32"
    return "q4" if hub.own_blocks(hub.find_backbone(), hub.backbone_source()) else "fp32"


def is_invariant(dtype: object) -> bool:
    """Whether a name of ``--dtypes`` is one of invariant decoding."""
    return dtype == AUTO or (dtype in DTYPES and DTYPES[str(dtype)].invariant)


def load_head(name: str, lm: TextLM) -> MTPHead:
    """A packaged head or that of a folder, in the precision of ``lm``."""
    from speech_mtp import hub

    head: MTPHead = hub.load_head(hub.find_head(name), lm)
    return head.to(lm.dtype).prepare(lm.head_blocks)


def listed(option: str, text: str) -> list[Any]:
    """``a,b,{name: c, size: 3}`` as in a recipe -> the names and mappings of an option."""
    from speech_mtp.config import parse_override

    _, found = parse_override(f"{option}=[{text}]")
    if not found or not all(isinstance(f, str) or (isinstance(f, Mapping) and "name" in f) for f in found):
        raise ValueError(f"--{option} is {text!r}; give names with commas between, or {{name: ..., setting: value}}.")
    return list(found)
