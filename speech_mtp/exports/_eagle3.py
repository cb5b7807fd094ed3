"""EAGLE-3 as vLLM and speculators store it: tensors and the settings of the one layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speech_mtp.exports.base import output_rows, restored, shape_of, shares_bias
from speech_mtp.heads.base import MTPHead
from speech_mtp.heads.eagle3 import Eagle3
from speech_mtp.lm.text_lm import TextLM

HOLDS = "eagle3 heads that read three layers below the last, in rising order, by 'concat'"
NAMES = {"mix.map.": "fc.", "layer.": "layers.0.", "norm.": "norm.", "private.0.": "lm_head."}
"""Beginnings of our names -> of theirs."""


def obstacle(head: MTPHead, lm: TextLM) -> str | None:
    """Their ``fc`` reads three layers, which are named by the layer whose input they are: so the top has no name."""
    if not isinstance(head, Eagle3):
        return "its layer does not read embedding and state side by side"
    rising = list(head.taps) == sorted(set(head.taps))
    if len(head.taps) != 3 or head.mix.kind != "concat" or not rising or head.taps[0] < 0:
        return f"it reads the layers {list(head.taps)} by {head.mix.kind!r}"
    ids = torch.arange(2, device=lm.device)
    if not torch.equal(lm.embed(ids), lm.model.get_input_embeddings().weight[ids]):
        return "its trunk scales the embeddings that both share"
    return shares_bias(head, lm)


def tensors_of(head: MTPHead) -> dict[str, Tensor]:
    """``fc``, ``layers.0``, ``norm``, ``lm_head`` and, for a reduced draft vocabulary, ``d2t [num_tokens]`` (what to
    add to a draft id for the target's) and ``t2d [V]`` (whether a target id can be drafted)."""
    tensors = {
        theirs + name.removeprefix(ours): value
        for name, value in head.state_dict().items()
        for ours, theirs in NAMES.items()
        if name.startswith(ours)
    }
    tensors["lm_head.weight"] = output_rows(head)[0]
    if head.token_map is not None:
        ids = head.token_map
        tensors["d2t"] = ids - torch.arange(len(ids), device=ids.device)
        tensors["t2d"] = torch.zeros(head.shape.vocab_size, dtype=torch.bool, device=ids.device).scatter(0, ids, True)
    return tensors


def layer_config(head: MTPHead, lm: TextLM) -> dict[str, Any]:
    """The layer as a Llama configuration."""
    shape = head.shape
    return {
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.dim,
        "intermediate_size": head.intermediate_size,
        "num_hidden_layers": 1,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": lm.max_positions,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": lm.model.config.bos_token_id,
        "eos_token_id": lm.model.config.eos_token_id,
    }


def head_of(
    folder: Path,
    settings: Mapping[str, Any],
    layer: Mapping[str, Any],
    taps: list[int],
    tensors: Mapping[str, Tensor],
    lm: TextLM,
    **more: Any,
) -> MTPHead:
    """The head of ``settings`` (theirs) and ``layer`` (its configuration), reading ``taps``; ``more`` are settings of
    ours. Raises ValueError for a layer that is not ours."""
    if settings.get("norm_before_residual", True) or layer["num_hidden_layers"] != 1:
        raise ValueError(f"The head in {folder} has another layer than ours: more than one, or a normalised residual.")
    shape = shape_of(
        lm,
        num_heads=layer["num_attention_heads"],
        num_kv_heads=layer["num_key_value_heads"],
        head_dim=layer["head_dim"],
        intermediate_size=layer["intermediate_size"],
        rms_norm_eps=layer["rms_norm_eps"],
        rope_theta=layer["rope_theta"],
    )
    rows = settings["draft_vocab_size"]
    reduced = rows if "d2t" in tensors else None
    head = Eagle3(shape, private=True, taps=tuple(taps), draft_vocab=reduced, **more)
    state = {
        ours + name.removeprefix(theirs): value
        for name, value in tensors.items()
        for ours, theirs in NAMES.items()
        if name.startswith(theirs)
    }
    if "d2t" in tensors:
        state["token_map"] = tensors["d2t"] + torch.arange(rows)
    return restored(head, state, lm, folder)
