"""Voices: ``voices`` lists, adds and removes them, ``convert`` says a recording in one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speech_mtp.cli.shared import Model, Threads, Voice, check_output

if TYPE_CHECKING:
    from torch import Tensor

    from speech_mtp.codecs.base import Codec
    from speech_mtp.lm.bundle import SpeechModel
    from speech_mtp.voices.saved import SavedVoices

group = typer.Typer(no_args_is_help=True, help="Voices of a model, and those that were made of recordings.")
VoiceFrom = Annotated[Path | None, typer.Option(help="A recording of 3 to 10 seconds: the voice of who speaks in it.")]
BLOCK_S = 2.0
"""Seconds of a file that are converted at a time."""


def _saved(codec: Codec) -> SavedVoices:
    from speech_mtp.hub import cache_folder
    from speech_mtp.voices.saved import SavedVoices

    return SavedVoices(cache_folder() / "voices", codec)


def _recording(path: Path, rate_hz: int) -> Tensor:
    """As much of a recording as a voice is made of, ``[S]``."""
    import torch

    from speech_mtp import audio
    from speech_mtp.voices.reference import LOOKED_AT_S

    blocks: list[Tensor] = []
    for block in audio.read_blocks(path, rate_hz):
        blocks.append(block)
        if sum(map(len, blocks)) >= LOOKED_AT_S * rate_hz:
            break
    return torch.cat(blocks)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """What makes no voice is said of ``path``."""
    from speech_mtp.voices.reference import UnusableRecordingError

    try:
        yield
    except UnusableRecordingError as error:
        raise UnusableRecordingError(f"{path} makes no voice. {error}") from None


def made_of(codec: Codec, path: Path) -> Tensor:
    """The voice of a recording, ``[E]``. Raises what reading it raises, and ValueError naming it for one that makes
    no voice."""
    from speech_mtp.voices.reference import timbre_of

    rate = codec.spec.sample_rate
    with _naming(path):
        return timbre_of(codec, _recording(path, rate), rate)


def chosen(model: SpeechModel, voice: str | None, reference: Path | None) -> str | Tensor | None:
    """The voice that is asked for: that of a recording, one of the model's, or one that was made before. Raises
    ValueError for two at once."""
    if voice is not None and reference is not None:
        raise ValueError("--voice and --voice-from are two voices; give one of them.")
    if reference is not None:
        return made_of(model.codec, reference)
    if voice is None or voice in model.voices:
        return voice
    return _made(model.codec, voice, list(model.voices))


def _made(codec: Codec, voice: str, own: list[str]) -> Tensor:
    """A voice that was made of a recording. Raises ValueError, naming all that there are, for an unknown one."""
    from speech_mtp import plugins
    from speech_mtp.voices.saved import EVERYBODY

    saved = _saved(codec)
    timbre = saved.timbre(EVERYBODY, voice)
    if timbre is None:
        hint = plugins.nearest(voice, [*own, *(record.name for record in saved.of())])
        raise ValueError(f"There is no voice {voice!r}; {hint}. `speech-mtp voices add` makes one of a recording.")
    return timbre


# -- the group --------------------------------------------------------------------------------------------------------
@group.command("list")
def list_voices(model: Model = "tiny-en") -> None:
    """All voices that the model can speak with."""
    from speech_mtp import hub

    codec, own = hub.load_voices(model)
    for name in own:
        print(f"{name}\tof the model")
    saved = _saved(codec)
    for record in saved.of():
        print(f"{record.name}\tof a recording\t{record.id}")
    for record in saved.of_other_codecs():
        print(f"{record.name}\tof a recording, for another model\t{record.id}")


@group.command("add")
def add_voice(
    name: Annotated[str, typer.Argument(help="What to call it.")],
    recording: Annotated[Path, typer.Argument(help="3 to 10 seconds of somebody who has agreed to it.")],
    model: Model = "tiny-en",
    keep_reference: Annotated[bool, typer.Option("--keep-reference", help="Keep the speech, too.")] = False,
) -> None:
    """Make a voice of a recording; ``say``, ``convert`` and ``serve`` know it by its name."""
    from speech_mtp import hub
    from speech_mtp.serving.settings import OPENAI_VOICES
    from speech_mtp.voices.reference import remark
    from speech_mtp.voices.saved import EVERYBODY

    codec, own = hub.load_voices(model)
    if name in own or name in OPENAI_VOICES:
        raise ValueError(f"A voice cannot be called {name!r}: there is one of that name already.")
    rate = codec.spec.sample_rate
    with _naming(recording):
        wave = _recording(recording, rate)
        record = _saved(codec).make(EVERYBODY, name, wave, rate, keep_reference=keep_reference)
    print(f"{record.name}: made of {recording}, {record.id}")
    if said := remark(own, hub.voices_heard(model)):
        print(said)


@group.command("remove")
def remove_voice(name: Annotated[str, typer.Argument(help="Its name or id.")], model: Model = "tiny-en") -> None:
    """Delete a voice that was made of a recording."""
    from speech_mtp import hub
    from speech_mtp.voices.saved import EVERYBODY

    record = _saved(hub.load_voices(model)[0]).forget(EVERYBODY, name)
    if record is None:
        raise ValueError(f"There is no voice {name!r} that was made of a recording; `speech-mtp voices list` has them.")
    print(f"{record.name}: removed")


# -- a recording in another voice -------------------------------------------------------------------------------------
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN.WAV", help="A recording of any length and rate.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="A .wav or .flac file.")] = Path("converted.wav"),
    voice: Voice = None,
    voice_from: VoiceFrom = None,
    model: Model = "tiny-en",
    threads: Threads = None,
) -> None:
    """Say a recording in another voice: its words and melody, that voice's timbre."""
    if (voice is None) == (voice_from is None):
        raise ValueError("Say in which voice: --voice NAME, or --voice-from RECORDING.")
    check_output(out)
    if not source.is_file():
        raise FileNotFoundError(f"There is no audio file {source}.")
    from speech_mtp import audio, hub
    from speech_mtp.threads import SPEECH, use_threads
    from speech_mtp.voices.conversion import Converter

    use_threads(threads, SPEECH)
    codec, own = hub.load_voices(model)
    if voice_from is not None:
        target = made_of(codec, voice_from)
    else:
        assert voice is not None
        target = own[voice] if voice in own else _made(codec, voice, list(own))
    converter = Converter(codec, target, block_s=BLOCK_S)
    rate = codec.spec.sample_rate

    def converted() -> Iterator[Tensor]:
        for block in audio.read_blocks(source, rate):
            yield converter.push(block)
        yield converter.close()

    seconds = audio.write_blocks(out, converted(), rate)
    print(f"{out}: {seconds:.2f} s of audio")
