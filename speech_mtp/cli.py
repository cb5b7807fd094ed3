"""The command line: ``say``, ``tokenize``, ``corpus``, ``train``, ``eval speech``, ``eval codec``.

A wrong input ends with one sentence on stderr and exit code 2, and leaves no half-written file. Heavy modules are
imported by the commands that need them, so that ``--help`` is fast.
"""

from __future__ import annotations

import codecs
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speech_mtp.plugins import MissingExtra

if TYPE_CHECKING:
    from speech_mtp.codecs.base import Codec
    from speech_mtp.lm.bundle import SpeechModel
    from speech_mtp.streaming.timed import Utterance
    from speech_mtp.types import Sampling

UsageError: Any = typer.BadParameter.__base__
app = typer.Typer(rich_markup_mode=None, add_completion=False, help="Speech language models on decoupled codec tokens.")
evaluation = typer.Typer(rich_markup_mode=None, help="Measure a model or a codec.")
app.add_typer(evaluation, name="eval")

Model = Annotated[str, typer.Option(help="Packaged name, folder or hub id.")]
Backbone = Annotated[str | None, typer.Option(help="Folder or hub id of the language model, if not found by itself.")]
Voice = Annotated[str | None, typer.Option(help="Name of a voice; by default the model's first.")]
Seed = Annotated[int | None, typer.Option(help="The same seed gives the same audio.")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="KEY=VALUE...", help="Settings, as in train.rate=1e-4.")]


def main() -> None:
    """Entry point of the program ``speech-mtp``."""
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="speech-mtp", standalone_mode=False)
    except UsageError as error:
        sys.exit(_refuse(error.format_message()))
    except (ValueError, OSError, MissingExtra) as error:
        sys.exit(_refuse(_sentence(error)))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    return " ".join(str(error).split())


def _refuse(sentence: str) -> int:
    print(f"speech-mtp: {sentence}", file=sys.stderr)
    return 2


# -- say --------------------------------------------------------------------------------------------------------------
@app.command()
def say(
    text: Annotated[str | None, typer.Argument(help='The text; "-" reads standard input, "@file" a file.')] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="A .wav or .flac file.")] = Path("out.wav"),
    lines: Annotated[Path | None, typer.Option(help="A text file; every line becomes an audio file.")] = None,
    out_dir: Annotated[Path | None, typer.Option(help="Folder for --lines: 000.wav, 001.wav, ...")] = None,
    voice: Voice = None,
    model: Model = "tiny-en",
    backbone: Backbone = None,
    group: Annotated[int | None, typer.Option(help="Frames per step; the model must be made for it.")] = None,
    seed: Seed = None,
    temperature: Temperature = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line per audio file.")] = False,
) -> None:
    """Speak a text, or every line of a file."""
    if (text is None) == (lines is None) or (lines is None) != (out_dir is None):
        raise ValueError("Give either a text, or --lines FILE together with --out-dir DIR.")
    jobs = [(_text(text), out)] if text is not None else list(_numbered(lines, out_dir))
    for _, path in jobs:
        _check_output(path, folder_exists=out_dir is None)
    _check_texts([words for words, _ in jobs if isinstance(words, str)], lines)
    from speech_mtp.streaming.timed import say as speak
    from speech_mtp.streaming.timed import warm_up

    loaded = _load(model, backbone, group)
    sampling = _sampling(loaded, seed, temperature)
    loaded.timbre(voice)
    warm_up(loaded)
    if out_dir is not None:
        out_dir.mkdir(parents=True, exist_ok=True)
    for words, path in jobs:
        spoken = speak(loaded, words, voice, sampling)
        _write_audio(path, spoken)
        _tell(spoken, path, as_json)


def _text(text: str) -> str | Iterator[str]:
    if text == "-":
        return _stdin()
    return _read(Path(text[1:])) if text.startswith("@") else text


def _stdin() -> Iterator[str]:
    """Standard input piece by piece, as it arrives."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while piece := os.read(sys.stdin.fileno(), 4096):
            yield decoder.decode(piece)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise ValueError("Standard input is not text in UTF-8.") from error


def _read(path: Path) -> str:
    if not path.is_file():
        raise FileNotFoundError(f"There is no text file {path}.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8.") from error


def _lines(path: Path) -> list[str]:
    """The lines of a file, white space around it left out; an empty one in between is an error."""
    lines = _read(path).strip().splitlines()
    empty = next((number for number, line in enumerate(lines, start=1) if not line.strip()), None)
    if empty or not lines:
        where = f"Line {empty} of the text in {path}" if empty else f"The file {path}"
        raise ValueError(f"{where} is empty; write one text a line.")
    return lines


def _numbered(lines: Path | None, folder: Path | None) -> Iterator[tuple[str, Path]]:
    assert lines is not None
    assert folder is not None
    for number, line in enumerate(_lines(lines)):
        yield line, folder / f"{number:03d}.wav"


def _check_texts(texts: list[str], source: Path | None) -> None:
    """Refuse what cannot be spoken, naming its line in ``source``, before anything is loaded or written."""
    from speech_mtp.streaming.feed import sentences

    for number, text in enumerate(texts, start=1):
        try:
            sentences(text)
        except ValueError as error:
            if source is None:
                raise
            raise ValueError(f"Line {number} of {source} cannot be spoken: {error}") from error


def _check_output(path: Path, suffixes: Iterable[str] | None = None, folder_exists: bool = True) -> None:
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


def _load(model: str, backbone: str | None, group: int | None = None) -> SpeechModel:
    from speech_mtp import hub

    loaded: SpeechModel = hub.load(model, backbone=backbone)
    made_for = loaded.lm.config.frames_per_group
    if group is not None and group != made_for:
        raise ValueError(f"Model {model} decodes {made_for} frames per step, not {group}; use --group {made_for}.")
    return loaded


def _sampling(model: SpeechModel, seed: int | None, temperature: float | None) -> Sampling:
    given = {"seed": seed, "temperature": temperature}
    return replace(model.sampling, **{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]


def _write_audio(path: Path, spoken: Utterance) -> None:
    from speech_mtp import audio

    audio.write(path, spoken.wave, spoken.sample_rate)


def _tell(spoken: Utterance, path: Path, as_json: bool) -> None:
    figures = {
        "file": str(path),
        "seconds": round(spoken.seconds, 3),
        "rtf": round(spoken.compute_s / spoken.seconds, 4),
        "ttfa_ms": round(1000 * spoken.first_audio_s, 1),
        "steps": spoken.steps,
        "frames_per_step": round(spoken.frames / spoken.steps, 3),
        "finish_reason": spoken.finish.reason,
    }
    if as_json:
        print(json.dumps({**figures, "words": [asdict(word) for word in spoken.words]}, ensure_ascii=False), flush=True)
        return
    print(
        f"{path}: {spoken.seconds:.2f} s of audio, real-time factor {figures['rtf']}, "
        f"first audio after {figures['ttfa_ms']} ms, {spoken.steps} steps of {figures['frames_per_step']} frames, "
        f"ended by {spoken.finish.reason}",
        flush=True,
    )
    if spoken.finish.detail:
        print(f"speech-mtp: stopped early: {spoken.finish.detail}", file=sys.stderr)


# -- tokenize ---------------------------------------------------------------------------------------------------------
@app.command()
def tokenize(
    source: Annotated[Path, typer.Argument(metavar="IN.WAV", help="Mono audio at the codec's sample rate.")],
    sound: Annotated[Path | None, typer.Argument(metavar="[OUT.WAV]", help="File for --resynthesize.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="A .safetensors file.")] = None,
    resynthesize: Annotated[bool, typer.Option("--resynthesize", help="Also write what the codes sound like.")] = False,
    codec: Annotated[str, typer.Option(help="Packaged name, folder or hub id.")] = "tiny-en",
) -> None:
    """Audio -> codes ("frames [K, F]") and timbre ("[E]") in a safetensors file."""
    if sound is not None and not resynthesize:
        raise ValueError(f"The file {sound} is for --resynthesize; add that option, or leave the file out.")
    out = out or source.with_suffix(".safetensors")
    sound = sound or out.with_suffix(".resynthesized.wav")
    _check_output(out, (".safetensors",))
    _check_output(sound)
    from speech_mtp import audio, hub

    loaded = hub.load_codec(codec)
    wave, rate = audio.read(source, loaded.spec.sample_rate)
    codes = loaded.encode(wave[None, None])
    tensors = {"frames": codes.frames[0].contiguous()}
    if codes.timbre is not None:
        tensors["timbre"] = codes.timbre[0].contiguous()
    resynthesized = loaded.decode(codes)[0, 0] if resynthesize else None
    _write_codes(out, tensors, loaded, codec)
    frames = codes.frames.shape[-1]
    print(f"{out}: {frames} frames of {loaded.spec.num_streams} streams for {len(wave) / rate:.2f} s of audio")
    if resynthesized is not None:
        audio.write(sound, resynthesized, rate)
        print(f"{sound}: {len(resynthesized) / rate:.2f} s of audio")


def _write_codes(path: Path, tensors: Mapping[str, Any], codec: Codec, name: str) -> None:
    from safetensors.torch import save_file

    from speech_mtp.files import replacing

    spec = codec.spec
    streams = {stream: [part.start, part.stop] for stream, part in spec.streams.items()}
    about = {"codec": name, "sample_rate": spec.sample_rate, "frame_rate_hz": spec.frame_rate_hz, "streams": streams}
    with replacing(path) as temporary:
        save_file(dict(tensors), temporary, {k: v if isinstance(v, str) else json.dumps(v) for k, v in about.items()})


# -- corpus and train -------------------------------------------------------------------------------------------------
@app.command()
def corpus(config: Path, overrides: Overrides = None, model: Model = "tiny-en", backbone: Backbone = None) -> None:
    """Make a corpus of teacher speech, or go on with one; the backbone writes its text."""
    from speech_mtp import config as settings
    from speech_mtp.corpus.build import CorpusConfig, build_corpus

    def writer() -> tuple[Any, Any]:
        from speech_mtp.lm.backbone import Backbone as Writer

        found = (
            Writer.from_folder(backbone)
            if backbone and Path(backbone).is_dir()
            else _load(model, backbone).maker.backbone
        )
        return found.model, found.tokenizer

    figures = build_corpus(settings.load(config, CorpusConfig, overrides or ()), writer)
    print(json.dumps(figures, ensure_ascii=False))


@app.command()
def train(config: Path, overrides: Overrides = None) -> None:
    """Train what the recipe says, or go on with it."""
    from speech_mtp import config as settings
    from speech_mtp.training.runs import TrainConfig, run

    print(json.dumps(run(settings.load(config, TrainConfig, overrides or ())), ensure_ascii=False))


# -- eval -------------------------------------------------------------------------------------------------------------
@evaluation.command("speech")
def eval_speech(
    sentences: Annotated[Path, typer.Option(help="A text file with one sentence a line.")],
    out: Annotated[Path, typer.Option("--json", help="File for the report.")],
    voice: Annotated[str | None, typer.Option(help="Name of a voice; by default every voice in turn.")] = None,
    reference: Annotated[Path | None, typer.Option(help="A recording of the voice, to compare speakers with.")] = None,
    model: Model = "tiny-en",
    backbone: Backbone = None,
    seed: Seed = None,
    temperature: Temperature = None,
) -> None:
    """Word errors, success, opinion scores, speaker similarity and speed; the worst voice's figures come first."""
    _check_output(out, (".json",))
    from speech_mtp import audio
    from speech_mtp.evaluation.speech_report import speech_report
    from speech_mtp.streaming.timed import warm_up

    texts = _lines(sentences)
    _check_texts(texts, sentences)
    recording = audio.read(reference, mono=True) if reference else None
    loaded = _load(model, backbone)
    if voice is not None:
        loaded.timbre(voice)
    sampling = _sampling(loaded, seed, temperature)
    warm_up(loaded)
    reports = {}
    for name in [voice] if voice else loaded.voices:
        known = recording or _recording_of(model, name)
        reports[name] = speech_report(partial(_spoken, loaded, name, sampling), texts, known)
        print(f"{name}: {_summary(reports[name])}", file=sys.stderr)
    worst = max(reports, key=lambda name: reports[name]["wer"])
    figures = {k: v for k, v in reports[worst].items() if k != "rows"}
    _write_report(out, {"model": model, "voice": worst, **figures, "sampling": asdict(sampling), "voices": reports})


def _spoken(model: SpeechModel, voice: str, sampling: Sampling, text: str) -> Utterance:
    from speech_mtp.streaming.timed import say as speak

    return speak(model, text, voice, sampling)


def _recording_of(model: str, voice: str) -> tuple[Any, int] | None:
    """The reference recording that a model folder may hold: ``voices/<voice>.wav`` or ``.flac``."""
    from speech_mtp import audio, hub

    paths = [hub.find_model(model) / "voices" / f"{voice}{suffix}" for suffix in audio.FORMATS]
    return next((audio.read(path, mono=True) for path in paths if path.is_file()), None)


@evaluation.command("codec")
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
    codec: Annotated[str, typer.Option(help="Packaged name, folder or hub id.")] = "tiny-en",
    seed: int = 0,
) -> None:
    """Round trip, bit rate, code usage, timbre swap, agreement of voices, melody."""
    _check_output(out, (".json",))
    if not audio_dir and not corpus_dir:
        raise ValueError("Give the recordings to evaluate on: --audio DIR or --corpus FOLDER.")
    from speech_mtp import hub
    from speech_mtp.corpus.samples import from_corpus, from_folder
    from speech_mtp.evaluation.codec_report import Sample, codec_report

    loaded = hub.load_codec(codec)
    rate = loaded.spec.sample_rate
    found = [sample for folder in audio_dir or () for sample in from_folder(folder, rate, per_voice)]
    found += [sample for folder in corpus_dir or () for sample in from_corpus(folder, split, rate, per_voice)]
    report = codec_report(loaded, [Sample(*sample) for sample in found], seed=seed)
    print(_summary(report["round_trip"]), file=sys.stderr)
    _write_report(out, {"codec": codec, **report})


def _summary(report: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in report.items() if isinstance(value, int | float))


def _write_report(path: Path, report: Mapping[str, Any]) -> None:
    from speech_mtp.files import replacing

    with replacing(path) as temporary:
        temporary.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"wrote {path}")
