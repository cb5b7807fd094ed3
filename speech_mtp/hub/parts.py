"""The parts of a model that speaks, each a checkpoint of its own: codec, speech LM and text encoder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from speech_mtp import plugins
from speech_mtp.codecs.base import Codec
from speech_mtp.hub.finding import find_model
from speech_mtp.hub.settings import DIRECT, TALKER
from speech_mtp.lm.speech_lm import SpeechLM
from speech_mtp.storage import CONFIG, Storage, load_checkpoint, load_weights, read_config, save_checkpoint

if TYPE_CHECKING:  # imported where they are used: the first imports ``transformers``, which takes a second
    from speech_mtp.lm.direct import DirectLM
    from speech_mtp.lm.text_encoder import TextEncoder

LM = TypeVar("LM", "SpeechLM", "DirectLM")


def save_codec(codec: Codec, folder: str | Path, dtype: Storage = "int8", card: str = "") -> None:
    """Save a codec that gives its settings with ``to_config``. Errors as for :func:`save_checkpoint`."""
    to_config = getattr(codec, "to_config", None)
    if to_config is None:
        raise ValueError(f"A {type(codec).__name__} codec is loaded from its own source and cannot be saved here.")
    module, _, name = type(codec).__module__.rpartition(".")
    if module != "speech_mtp.codecs":
        name = f"{type(codec).__module__}:{type(codec).__qualname__}"
    settings = {"name": name, **to_config()}
    state = {k: v.float() if v.dtype == torch.float64 else v for k, v in codec.state_dict().items()}
    save_checkpoint(folder, {"kind": "codec", "codec": settings}, state, dtype, card)


def load_codec(name_or_path: str | Path) -> Codec:
    """The codec of a model or of a codec checkpoint, in evaluation mode. Errors as for :func:`load_checkpoint`."""
    folder = find_model(name_or_path)
    if (folder / "codec").is_dir():
        folder = folder / "codec"
    config, state = load_checkpoint(folder, kind="codec")
    entries = dict(config["codec"])
    cls = plugins.find("codecs", entries.pop("name"))
    try:
        codec: Codec = cls.from_config(entries)
    except TypeError as error:
        raise ValueError(f"{folder / CONFIG} has settings that this version does not know: {error}.") from error
    load_weights(codec, state, folder)
    return codec.eval()


def save_speech_lm(lm: SpeechLM | DirectLM, folder: str | Path, dtype: Storage = "fp32", card: str = "") -> None:
    """Save a talker, or a backbone that speaks itself. Errors as for :func:`save_checkpoint`."""
    kind = "speech_lm" if isinstance(lm, SpeechLM) else "direct_lm"
    save_checkpoint(folder, {"kind": kind, kind: lm.to_config()}, lm.state_dict(), dtype, card)


def load_any_lm(name_or_path: str | Path) -> SpeechLM | DirectLM:
    """Whichever of the two :func:`save_speech_lm` has saved there, or that of a model. Errors as for
    :func:`load_checkpoint`."""
    folder = find_model(name_or_path)
    folder = next((folder / form for form in (TALKER, DIRECT) if (folder / form).is_dir()), folder)
    return load_direct_lm(folder) if read_config(folder)["kind"] == "direct_lm" else load_speech_lm(folder)


def load_speech_lm(folder: str | Path) -> SpeechLM:
    """A talker in evaluation mode. Errors as for :func:`load_checkpoint`."""
    return _load_lm(SpeechLM, "speech_lm", Path(folder))


def load_direct_lm(folder: str | Path) -> DirectLM:
    """A backbone that speaks itself, in evaluation mode. Errors as for :func:`load_checkpoint`."""
    from speech_mtp.lm.direct import DirectLM

    return _load_lm(DirectLM, "direct_lm", Path(folder))


def _load_lm(family: type[LM], kind: str, folder: Path) -> LM:
    config, state = load_checkpoint(folder, kind=kind)
    try:
        lm = family.from_config(dict(config[kind]))
    except (TypeError, KeyError) as error:
        raise ValueError(f"{folder / CONFIG} has settings that this version does not know: {error}.") from error
    load_weights(lm, state, folder)
    return lm.eval()


def save_text_encoder(encoder: TextEncoder, folder: str | Path, dtype: Storage = "fp32", card: str = "") -> None:
    """Save a text encoder. Errors as for :func:`save_checkpoint`."""
    config = {"kind": "text_encoder", "text_encoder": encoder.to_config()}
    save_checkpoint(folder, config, encoder.state_dict(), dtype, card)


def load_text_encoder(folder: str | Path) -> TextEncoder:
    """A text encoder in evaluation mode. Errors as for :func:`load_checkpoint`."""
    from speech_mtp.lm.text_encoder import TextEncoder, TextEncoderConfig

    config, state = load_checkpoint(folder, kind="text_encoder")
    try:
        encoder = TextEncoder(TextEncoderConfig(**config["text_encoder"]))
    except (TypeError, KeyError) as error:
        raise ValueError(f"{Path(folder) / CONFIG} has settings that this version does not know: {error}.") from error
    load_weights(encoder, state, Path(folder))
    return encoder.eval()
