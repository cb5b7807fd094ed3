"""Where models come from, and what is in the checkpoints that :mod:`speech_mtp.storage` writes.

A model is named by a packaged name (``tiny-en``), a path, or the id of a hub repository. The backbone of a talker is
not part of its checkpoint: it is found by fingerprint with :func:`resolve_backbone`. The direct form holds its own.
"""

from __future__ import annotations

from speech_mtp.files import cache_folder
from speech_mtp.hub.backbones import (
    PACKAGED,
    backbone_source,
    block_weights,
    convert_gguf,
    find_backbone,
    into_blocks,
    own_blocks,
    resolve_backbone,
)
from speech_mtp.hub.finding import ASSETS, DEFAULT_MODEL, TOKENIZER, VOICES, find_model, known_models
from speech_mtp.hub.heads import (
    DEFAULT_HEAD,
    HEADS,
    default_head,
    find_head,
    known_heads,
    load_head,
    repack_head,
    save_head,
)
from speech_mtp.hub.models import load, load_voices, save_model, voices_heard
from speech_mtp.hub.parts import (
    load_aligner,
    load_any_lm,
    load_codec,
    load_direct_lm,
    load_inventory,
    load_speech_lm,
    load_text_encoder,
    save_codec,
    save_inventory,
    save_speech_lm,
    save_text_encoder,
)
from speech_mtp.hub.settings import DIRECT, OWN_G2P, TALKER
from speech_mtp.storage import Storage, dequantise_state, load_checkpoint, quantise_state, save_checkpoint

__all__ = [
    "ASSETS",
    "DEFAULT_HEAD",
    "DEFAULT_MODEL",
    "DIRECT",
    "HEADS",
    "OWN_G2P",
    "PACKAGED",
    "TALKER",
    "TOKENIZER",
    "VOICES",
    "Storage",
    "backbone_source",
    "block_weights",
    "cache_folder",
    "convert_gguf",
    "default_head",
    "dequantise_state",
    "find_backbone",
    "find_head",
    "find_model",
    "into_blocks",
    "known_heads",
    "known_models",
    "load",
    "load_aligner",
    "load_any_lm",
    "load_checkpoint",
    "load_codec",
    "load_direct_lm",
    "load_head",
    "load_inventory",
    "load_speech_lm",
    "load_text_encoder",
    "load_voices",
    "own_blocks",
    "quantise_state",
    "repack_head",
    "resolve_backbone",
    "save_checkpoint",
    "save_codec",
    "save_head",
    "save_inventory",
    "save_model",
    "save_speech_lm",
    "save_text_encoder",
    "voices_heard",
]
