"""Text to sound and sound to codes: ``say``, ``tokenize``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from speech_mtp.cli.shared import (
    Backbone,
    BestOf,
    CodecSource,
    Lexicon,
    Model,
    Seed,
    StreamTemperatures,
    Temperature,
    Threads,
    Voice,
    check_output,
    check_texts,
    codec_of,
    load_model,
    read_lines,
    sampling_of,
    text_of,
)
from speech_mtp.cli.voices import VoiceFrom, chosen

if TYPE_CHECKING:
    from speech_mtp.codecs.base import Codec
    from speech_mtp.streaming.timed import Utterance


def say(
    text: Annotated[str | None, typer.Argument(help='The text; "-" reads standard input, "@file" a file.')] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="A .wav or .flac file.")] = Path("out.wav"),
    lines: Annotated[Path | None, typer.Option(help="A text file; every line becomes an audio file.")] = None,
    out_dir: Annotated[Path | None, typer.Option(help="Folder for --lines: 000.wav, 001.wav, ...")] = None,
    voice: Voice = None,
    voice_from: VoiceFrom = None,
    model: Model = "tiny-en",
    backbone: Backbone = None,
    lexicon: Lexicon = None,
    group: Annotated[int | None, typer.Option(help="Frames per step; the model must be made for it.")] = None,
    seed: Seed = None,
    temperature: Temperature = None,
    stream_temperatures: StreamTemperatures = None,
    best_of: BestOf = 1,
    threads: Threads = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON line per audio file; words stay empty without layout aligned."),
    ] = False,
) -> None:
    """Speak a text, or every line of a file."""
    if (text is None) == (lines is None) or (lines is None) != (out_dir is None):
        raise ValueError("Give either a text, or --lines FILE together with --out-dir DIR.")
    jobs = [(text_of(text), out)] if text is not None else list(_numbered(lines, out_dir))
    for _, path in jobs:
        check_output(path, folder_exists=out_dir is None)
    check_texts([words for words, _ in jobs if isinstance(words, str)], lines)
    from speech_mtp.streaming.timed import speak_timed, warm_up

    loaded = load_model(model, backbone, group, threads, lexicon)
    sampling = sampling_of(loaded, seed, temperature, stream_temperatures)
    speaker = chosen(loaded, voice, voice_from)
    warm_up(loaded)
    if out_dir is not None:
        out_dir.mkdir(parents=True, exist_ok=True)
    for words, path in jobs:
        spoken = speak_timed(loaded, words, speaker, sampling, best_of)
        _write_audio(path, spoken)
        _tell(spoken, path, as_json)


def _numbered(lines: Path | None, folder: Path | None) -> Iterator[tuple[str, Path]]:
    assert lines is not None
    assert folder is not None
    for number, line in enumerate(read_lines(lines)):
        yield line, folder / f"{number:03d}.wav"


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


def tokenize(
    source: Annotated[Path, typer.Argument(metavar="IN.WAV", help="Mono audio at the codec's sample rate.")],
    sound: Annotated[Path | None, typer.Argument(metavar="[OUT.WAV]", help="File for --resynthesize.")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="A .safetensors file.")] = None,
    resynthesize: Annotated[bool, typer.Option("--resynthesize", help="Also write what the codes sound like.")] = False,
    codec: CodecSource = "tiny-en",
    threads: Threads = None,
) -> None:
    """Audio -> codes ("frames [K, F]") and timbre ("[E]") in a safetensors file."""
    if sound is not None and not resynthesize:
        raise ValueError(f"The file {sound} is for --resynthesize; add that option, or leave the file out.")
    out = out or source.with_suffix(".safetensors")
    sound = sound or out.with_suffix(".resynthesized.wav")
    check_output(out, (".safetensors",))
    check_output(sound)
    from speech_mtp import audio, hub
    from speech_mtp.threads import use_threads

    use_threads(threads)
    loaded = hub.load_codec(codec_of(codec))
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
