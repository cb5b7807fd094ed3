"""Whole models that speak: packaged from their parts, and loaded with the backbone that they need."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from speech_mtp import plugins
from speech_mtp.codecs.base import Codec
from speech_mtp.files import replacing
from speech_mtp.hub.backbones import own_blocks, resolve_backbone
from speech_mtp.hub.finding import DEFAULT_MODEL, TOKENIZER, VOICES, find_model
from speech_mtp.hub.parts import (
    load_codec,
    load_direct_lm,
    load_speech_lm,
    load_text_encoder,
    save_codec,
    save_speech_lm,
    save_text_encoder,
)
from speech_mtp.hub.settings import DIRECT, OWN_G2P, TALKER, model_settings
from speech_mtp.lm.bundle import SpeechModel
from speech_mtp.lm.group_lm import GroupLMConfig
from speech_mtp.lm.packed_backbone import PackedBackbone
from speech_mtp.lm.packed_backbone import fits as reads_alone
from speech_mtp.lm.reader import TextReader
from speech_mtp.lm.speech_lm import SpeechLM
from speech_mtp.lm.token_maker import TokenMaker
from speech_mtp.lm.units import UnitMaker
from speech_mtp.nn.blocks import is_native
from speech_mtp.storage import CARD, CONFIG, Storage, new_folder
from speech_mtp.text.lexicon import Lexicon, read_lexicon
from speech_mtp.threads import SPEECH, use_threads
from speech_mtp.types import CodecSpec, Sampling

if TYPE_CHECKING:  # imported where they are used: the first imports ``transformers``, which takes a second
    from speech_mtp.lm.direct import DirectLM
    from speech_mtp.lm.text_encoder import TextEncoder


def save_model(
    folder: str | Path,
    codec: Codec,
    lm: SpeechLM | DirectLM,
    voices: Mapping[str, Tensor],
    entries: Mapping[str, Any],
    storage: Storage = "int8",
    card: str = "",
    text_encoder: TextEncoder | None = None,
    tokenizer: Any = None,
) -> None:
    """Save a model that speaks: ``codec``, speech LM and ``voices`` (name -> vector ``[E]``).

    ``entries`` hold its backbone (source and fingerprint) and default sampling, and for a talker the hidden layer and
    the G2P. The G2P named ``own`` is the ``text_encoder``, stored in ``text``. The direct form reads its text with the
    ``tokenizer`` of its backbone, stored beside it.
    """
    form = TALKER if isinstance(lm, SpeechLM) else DIRECT
    if (entries.get("g2p") == OWN_G2P) != (text_encoder is not None):
        raise ValueError(f"A model has a text encoder exactly when its g2p is {OWN_G2P!r}; change one of the two.")
    if (tokenizer is not None) == isinstance(lm, SpeechLM):
        raise ValueError(
            "A model has a tokenizer of its own exactly when it is of the direct form; change one of the two."
        )
    if not isinstance(lm, SpeechLM) and len(tokenizer) > lm.trunk.config.vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, the language model {lm.trunk.config.vocab_size}; "
            "name the backbone that it was trained from."
        )
    _check_codec(codec.spec, lm.config)
    target, note = Path(folder), "Part of the model in the folder above."
    target.mkdir(parents=True, exist_ok=True)
    save_codec(codec, target / "codec", storage, note)
    save_speech_lm(lm, target / form, storage, note)
    if text_encoder is not None:
        save_text_encoder(text_encoder, target / "text", storage, note)
    if tokenizer is not None:
        with new_folder(target / TOKENIZER) as aside:
            tokenizer.save_pretrained(aside)
    with replacing(target / VOICES) as path:
        save_file({name: vector.float().contiguous() for name, vector in voices.items()}, path)
    with replacing(target / CARD) as path:
        path.write_text(card, encoding="utf-8")
    config = {"kind": "model", "form": form, "voices": list(voices), **entries}
    with replacing(target / CONFIG) as path:
        path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _check_codec(own: CodecSpec, lm: GroupLMConfig) -> None:
    """Raises ValueError where the codec is not the one whose codes the speech LM was trained on."""
    found = [(c.codebook_sizes, c.frame_rate_hz, c.timbre_dim) for c in (own, lm)]
    if found[0] != found[1]:
        makes, speaks = (f"codebooks of {s}, {r:g} Hz and a timbre of {t}" for s, r, t in found)
        raise ValueError(f"The codec has {makes}, the speech LM {speaks}; name the codec that encoded its corpus.")


def load(
    name_or_path: str | Path = DEFAULT_MODEL,
    backbone: str | None = None,
    threads: int | None = None,
    lexicon: str | Path | None = None,
) -> SpeechModel:
    """A model that speaks, with everything it needs; ``backbone`` names another copy of a talker's language model,
    ``lexicon`` a file of words and how to read them (:mod:`speech_mtp.text.lexicon`).

    From now on torch computes with ``threads`` in the whole process (:func:`speech_mtp.threads.use_threads`; None: the
    environment variable ``SPEECH_MTP_THREADS``, else one).

    Raises ValueError or FileNotFoundError, in one sentence, for whatever is missing, damaged or does not fit.
    """
    words = read_lexicon(lexicon) if lexicon is not None else {}
    use_threads(threads, SPEECH)
    folder = find_model(name_or_path)
    config, voices = model_settings(folder)
    try:
        sampling = Sampling(**config["sampling"])
    except TypeError as error:
        raise ValueError(f"{folder / CONFIG} has settings that this version does not know: {error}.") from error
    if config["form"] == DIRECT and backbone is not None:
        raise ValueError(f"The model in {folder} is its own language model; leave --backbone out.")
    if config["form"] == DIRECT and lexicon is not None:
        raise ValueError(f"The model in {folder} reads letters, not phonemes; leave --lexicon out.")
    maker, lm = _direct_parts(folder) if config["form"] == DIRECT else _talker_parts(folder, config, backbone)
    sampling.check_codebooks(len(lm.config.codebook_sizes))
    if isinstance(maker, UnitMaker):
        maker.g2p = Lexicon(maker.g2p, words)
    ordered = {name: voices[name] for name in config["voices"]}
    codec, heard = load_codec(folder / "codec"), config["voices_heard"]
    return SpeechModel(str(name_or_path), maker, lm, codec, ordered, sampling, heard)


def load_voices(name_or_path: str | Path = DEFAULT_MODEL) -> tuple[Codec, dict[str, Tensor]]:
    """The codec of a model that speaks and its voices (name -> timbre ``[E]``), without what reads text. Errors as for
    :func:`load`."""
    folder = find_model(name_or_path)
    config, voices = model_settings(folder)
    return load_codec(folder / "codec"), {name: voices[name] for name in config["voices"]}


def voices_heard(name_or_path: str | Path = DEFAULT_MODEL) -> int:
    """How many voices a model that speaks was trained on, as far as it says so; no fewer than it has."""
    return int(model_settings(find_model(name_or_path))[0]["voices_heard"])


def _talker_parts(folder: Path, config: dict[str, Any], backbone: str | None) -> tuple[UnitMaker, SpeechLM]:
    source = config["backbone"]
    where = resolve_backbone(source["sha256"], source, backbone)
    trunk = _open_reader(where, source, config["hidden_layer"])
    if config["g2p"] != OWN_G2P:
        g2p = plugins.build("text.g2p", config["g2p"])
    else:
        from speech_mtp.lm.text_encoder import Spelled

        g2p = Spelled(trunk, load_text_encoder(folder / "text"))
    return UnitMaker(trunk, g2p), load_speech_lm(folder / TALKER).prepare()


def _open_reader(folder: Path, source: Mapping[str, Any], hidden_layer: int) -> TextReader:
    """What reads text with the language model in ``folder``; ``source["prefix"]`` opens its turns, if that is known."""
    if reads_alone(folder) and "prefix" in source:
        blocks = own_blocks(folder, source) if is_native() else None
        return PackedBackbone(folder, source["sha256"], hidden_layer, source["prefix"], blocks)
    from speech_mtp.lm.backbone import Backbone

    return Backbone.from_folder(folder, torch.float32, source["sha256"], hidden_layer)


def _direct_parts(folder: Path) -> tuple[TokenMaker, DirectLM]:
    from speech_mtp.lm.backbone import load_tokenizer

    lm = load_direct_lm(folder / DIRECT)
    return lm.text_maker(load_tokenizer(folder / TOKENIZER)), lm
