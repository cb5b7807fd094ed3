"""The parts of a model that speaks, each a checkpoint of its own: codec, speech LM and text encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from speech_mtp import plugins
from speech_mtp.codecs.base import Codec
from speech_mtp.hub.finding import find_model
from speech_mtp.hub.settings import DIRECT, TALKER
from speech_mtp.lm.speech_lm import SpeechLM
from speech_mtp.storage import CONFIG, Storage, load_checkpoint, load_weights, read_config, save_checkpoint

if TYPE_CHECKING:  # imported where they are used: the first imports ``transformers``, which takes a second
    from speech_mtp.lm.direct import DirectLM
    from speech_mtp.lm.inventory import Inventory
    from speech_mtp.lm.text_encoder import TextEncoder

LM = TypeVar("LM", "SpeechLM", "DirectLM", "Inventory")


def save_codec(codec: Codec, folder: str | Path, dtype: Storage = "int8", card: str = "") -> None:
    """Save a codec, its weights included. Errors as for :func:`save_checkpoint` and ``codec.to_config``."""
    module, _, name = type(codec).__module__.rpartition(".")
    if module != "speech_mtp.codecs":
        name = f"{type(codec).__module__}:{type(codec).__qualname__}"
    settings = {"name": name, **codec.to_config()}
    state = {k: v.float() if v.dtype == torch.float64 else v for k, v in codec.state_dict().items()}
    save_checkpoint(folder, {"kind": "codec", "codec": settings}, state, dtype, card)


def load_codec(source: str | Path | Mapping[str, Any]) -> Codec:
    """A codec of the registry, in evaluation mode; a packaged name, a folder or a hub id says where it is.

    There lies a model that speaks, a codec checkpoint, or a published model whose ``model_type`` is the name of a codec
    (encodec, mimi, dac). A published one may be given settings: ``{name: encodec, source: facebook/encodec_24khz,
    num_codebooks: 8}``. Errors as for :func:`load_checkpoint` and :func:`speech_mtp.plugins.build`.
    """
    if isinstance(source, Mapping):
        if "source" not in source:
            raise ValueError(f"The codec {dict(source)} has no source; add the folder or hub id of its weights.")
        codec: Codec = plugins.build("codecs", {**source, "source": find_model(source["source"])})
        return codec.eval()
    folder = find_model(source)
    if (folder / "codec").is_dir():
        folder = folder / "codec"
    published = _model_type(folder)
    if published in plugins.names("codecs"):
        return load_codec({"name": published, "source": folder})
    config, state = load_checkpoint(folder, kind="codec")
    entries = dict(config["codec"])
    cls = plugins.find("codecs", entries.pop("name"))
    try:
        codec = cls.from_config(entries)
    except (TypeError, KeyError) as error:
        raise ValueError(f"{folder / CONFIG} has settings that this version does not know: {error}.") from error
    load_weights(codec, state, folder)
    return codec.eval()


def load_aligner(source: str | Path | Mapping[str, Any]) -> Codec:
    """A codec that tells which phoneme a frame speaks. Errors as for :func:`load_codec`, and for one that does not."""
    codec = load_codec(source)
    if not codec.spec.num_phonemes:
        raise ValueError(f"The codec {source} has no phoneme head, so it cannot align; name another aligner.")
    return codec


def _model_type(folder: Path) -> str | None:
    """What the configuration of a published model says it is; None for everything else."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config.get("model_type") if isinstance(config, dict) else None


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


def save_inventory(inventory: Inventory, folder: str | Path, card: str = "") -> None:
    """Save an inventory of utterances. Errors as for :func:`save_checkpoint`."""
    config = {"kind": "inventory", "inventory": inventory.to_config()}
    save_checkpoint(folder, config, inventory.state_dict(), "fp32", card)


def load_inventory(folder: str | Path) -> Inventory:
    """An inventory of utterances, in evaluation mode. Errors as for :func:`load_checkpoint`."""
    from speech_mtp.lm.inventory import Inventory

    return _load_lm(Inventory, "inventory", Path(folder))
