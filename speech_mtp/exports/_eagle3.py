"""EAGLE-3 as vLLM and speculators store it: tensors and the settings of the one layer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from speech_mtp.exports.base import output_rows, restored, shape_of, shares_bias
from speech_mtp.heads.base import MTPHead
from speech_mtp.heads.eagle3 import Eagle3, default_taps
from speech_mtp.lm.text_lm import TextLM

HOLDS = "eagle3 heads that read three layers below the last, in rising order, by 'concat'"
NAMES = {"mix.map.": "fc.", "layer.": "layers.0.", "norm.": "norm.", "private.0.": "lm_head."}
"""Beginnings of our names -> of theirs; older files have ``midlayer.`` in place of ``layers.0.``."""
IDS = "eagle_aux_hidden_state_layer_ids"
KINDS = ("llama", "qwen3")
"""``model_type`` of the layers that may be ours."""
SWITCHES = ("norm_before_fc", "fc_norm", "norm_output", "use_aux_norm")
"""Settings that change the layer into another than ours."""


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


def norm_before_residual(head: MTPHead) -> bool:
    """Whether the residual of the layer is the normalised state."""
    assert isinstance(head, Eagle3), type(head)
    return head.layer.norm_before_residual


def written_taps(head: MTPHead) -> tuple[list[int], list[int]]:
    """The layers that ``head`` reads, as ids at the top level of a configuration, which name the layer whose *input*
    is read, and as ids in ``eagle_config``, which name the layer whose *output* is read."""
    return list(head.taps), [tap - 1 for tap in head.taps]


def read_taps(config: Mapping[str, Any], lm: TextLM) -> tuple[int, ...]:
    """The inverse of :func:`written_taps`: the top level goes first, and a configuration without ids has EAGLE-3's
    own choice."""
    inputs, outputs = config.get(IDS), (config.get("eagle_config") or {}).get(IDS)
    if inputs is not None:
        return tuple(inputs)
    return default_taps(lm.num_layers) if outputs is None else tuple(i + 1 for i in outputs)


def head_of(
    folder: Path,
    settings: Mapping[str, Any],
    layer: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    lm: TextLM,
    **more: Any,
) -> MTPHead:
    """The head of ``settings`` (theirs) and ``layer`` (its configuration); ``more`` are settings of ours.

    A missing key has the default of the layer's own class of ``transformers``, not the trunk's value, and
    ``norm_before_residual`` is false. Raises ValueError for a layer that is not ours, for tensors that it does not
    have, and for an embedding that is not the trunk's.
    """
    config = _layer_of(folder, settings, layer, lm)
    state = _named(folder, tensors, lm)
    rows = len(state["private.0.weight"]) if "private.0.weight" in state else 0
    reduced = "token_map" in state and 0 < rows < lm.vocab_size
    if not reduced:
        state.pop("token_map", None)
    shape = shape_of(
        lm,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        intermediate_size=config.intermediate_size,
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=float(config.rope_parameters["rope_theta"]),
    )
    head = Eagle3(
        shape,
        private=rows > 0,
        taps=read_taps(settings, lm),
        draft_vocab=rows if reduced else None,
        norm_before_residual=bool(settings.get("norm_before_residual", False)),
        **more,
    )
    strange = sorted(set(state) - set(head.state_dict()))
    if strange:
        raise ValueError(f"The head in {folder} has tensors that ours has not: {', '.join(strange)}.")
    return restored(head, state, lm, folder)


def _layer_of(folder: Path, settings: Mapping[str, Any], layer: Mapping[str, Any], lm: TextLM) -> Any:
    """The configuration of the layer, complete. Raises ValueError unless it is a layer of ours."""
    kind = layer.get("model_type", "llama")
    named = {key: value for key, value in layer.items() if key not in ("model_type", "architectures", "auto_map")}
    config = AutoConfig.for_model(kind if kind in KINDS else "llama", **named)
    nested = settings.get("eagle_config") or {}
    asked = [name for name in SWITCHES if settings.get(name) or nested.get(name)]
    rope = config.rope_parameters.get("rope_type", "default")
    reason = None
    if kind not in KINDS or config.hidden_act != "silu":
        reason = f"a layer of the kind {kind!r} with the activation {config.hidden_act!r}"
    elif layer.get("num_hidden_layers", 1) != 1:
        reason = f"{layer['num_hidden_layers']} layers"
    elif config.hidden_size != lm.dim or settings.get("target_hidden_size") not in (None, lm.dim):
        reason = f"states of {config.hidden_size}, not {lm.dim} numbers"
    elif rope != "default":
        reason = f"rotary positions of the kind {rope!r}"
    elif asked or getattr(config, "attention_bias", False) or nested.get("use_aux_hidden_state", True) is not True:
        reason = f"the settings {', '.join(asked) or 'attention_bias or use_aux_hidden_state'}"
    elif settings.get("logit_scale", 1.0) != 1.0:
        reason = "scaled logits"
    if reason:
        raise ValueError(f"The head in {folder} has another layer than ours: {reason}.")
    return config


def _named(folder: Path, tensors: Mapping[str, Tensor], lm: TextLM) -> dict[str, Tensor]:
    """Their tensors by our names, ``token_map`` among them."""
    state: dict[str, Tensor] = {}
    for name, value in tensors.items():
        known = "layers.0." + name.removeprefix("midlayer.") if name.startswith("midlayer.") else name
        begun = next((pair for pair in NAMES.items() if known.startswith(pair[1])), None)
        if name == "embed_tokens.weight":
            _check_embedding(folder, value, lm)
        elif name not in ("d2t", "t2d") and not name.endswith("rotary_emb.inv_freq"):
            state[name if begun is None else begun[0] + known.removeprefix(begun[1])] = value.float()
    if "d2t" in tensors:
        ids = tensors["d2t"].long() + torch.arange(len(tensors["d2t"]))
        state["token_map"] = ids
        marked = tensors.get("t2d")
        if marked is not None and not torch.equal(marked.nonzero()[:, 0], ids.sort().values):
            raise ValueError(f"The head in {folder} names its draft vocabulary in two ways that differ; get it again.")
    return state


def _check_embedding(folder: Path, theirs: Tensor, lm: TextLM) -> None:
    """Raise ValueError unless ``theirs [V', D]`` is the trunk's embedding, up to rows that only fill one of the two."""
    ours = lm.model.get_input_embeddings().weight.detach().cpu()
    rows = min(len(ours), len(theirs))
    least = min(ours.dtype, theirs.dtype, key=lambda dtype: dtype.itemsize)
    if ours.shape[1:] != theirs.shape[1:] or not torch.equal(ours[:rows].to(least), theirs[:rows].to(least)):
        raise ValueError(f"The head in {folder} has an embedding that is not its trunk's, which ours cannot have.")
