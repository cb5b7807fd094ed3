"""Trunk and head as one model in DeepSeek-V3's layout, which ``transformers`` decodes with by itself.

``AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True).generate(..., use_mtp=True)``. Module k of the
head is stored as layer L + k, behind the L layers of the trunk; its projection reads the embedding first.
``transformers`` builds an MTP layer as the trunk's last layer is built, and finds its weights by the names that the
model's class says to leave out on loading. No class of a supported trunk says any, so the folder brings a subclass
that does and nothing else: that is the code to trust. Without it the folder is the plain trunk.

The layout knows no draft vocabulary: a head that has one drafts all tokens there, by the same scores.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from speech_mtp.exports.base import (
    HeadExport,
    read_folder,
    read_json,
    read_tensors,
    reads_more,
    restored,
    save_json,
    save_tensors,
    save_trunk,
    shape_of,
)
from speech_mtp.heads._sequential import MTPModule
from speech_mtp.heads.base import MTPHead
from speech_mtp.heads.deepseek import DeepSeek as DeepSeekHead
from speech_mtp.heads.fastmtp import FastMTP
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.storage import CONFIG, WEIGHTS

FITTING = ("llama", "mistral", "qwen2")
"""``model_type`` of the trunks whose layers are the head's blocks but for biases, which are stored as zeros."""

CODE = "modeling_mtp.py"
TEMPLATE = '''"""{base} that knows which of the stored weights are MTP layers; for ``generate(use_mtp=True)``."""

from transformers import {base}


class MtpForCausalLM({base}):
    _keys_to_ignore_on_load_unexpected = [{patterns}]
'''
OWN = {"norm.": "shared_head.norm.", "block.": ""}
"""Beginnings of a module's names -> of a layer's; the others are the same."""


class DeepSeek(HeadExport):
    """``model.layers.{L+k}.{enorm,hnorm,eh_proj,shared_head.norm}.weight`` and the usual names of a layer."""

    holds = f"deepseek heads on trunks of {', '.join(FITTING)} that read the last layer"

    def obstacle(self, head: MTPHead, lm: TextLM) -> str | None:
        config = lm.model.config
        if not isinstance(head, DeepSeekHead) and not (isinstance(head, FastMTP) and head.num_depths == 1):
            return "it is no sequence of modules with weights of their own"
        if config.model_type not in FITTING:
            return f"the layers of its {config.model_type!r} trunk are not built as its own"
        if (config.rope_parameters or {}).get("rope_type", "default") != "default" or config.hidden_act != "silu":
            return "its trunk scales rotary positions, or has another activation than SiLU"
        return reads_more(head)

    def fill(self, folder: Path, head: MTPHead, lm: TextLM) -> None:
        save_trunk(folder, lm)
        tensors = read_tensors(folder / WEIGHTS)
        modules, first = _modules(head), lm.num_layers
        for k, module in enumerate(modules):
            tensors |= {f"model.layers.{first + k}.{name}": value for name, value in _layer(module, lm).items()}
        save_tensors(folder / WEIGHTS, tensors)
        base = type(lm.model).__name__
        patterns = ", ".join(f'r"^model\\.layers\\.{first + k}\\."' for k in range(len(modules)))
        (folder / CODE).write_text(TEMPLATE.format(base=base, patterns=patterns), encoding="utf-8")
        config = read_json(folder / CONFIG)
        config |= {"num_mtp_layers": len(modules), "auto_map": {"AutoModelForCausalLM": "modeling_mtp.MtpForCausalLM"}}
        if config.get("layer_types"):
            config["mtp_layer_types"] = ["full_attention"] * len(modules)
        save_json(folder / CONFIG, config)

    def read(self, folder: str | Path, lm: TextLM) -> MTPHead:
        """``lm`` may be the trunk of the same folder."""
        config, tensors = read_folder(folder)
        head = DeepSeekHead(shape_of(lm), depth=int(config["num_mtp_layers"]))
        state: dict[str, Tensor] = {}
        for name, value in tensors.items():
            found = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", name)
            zero = name.endswith(".bias") and not value.any()
            if found and int(found[1]) >= lm.num_layers and not zero:
                state[f"layers.{int(found[1]) - lm.num_layers}.{_ours(found[2])}"] = value.float()
        return restored(head, state, lm, Path(folder))


def _modules(head: MTPHead) -> list[MTPModule]:
    if isinstance(head, FastMTP):
        return [head.module]
    assert isinstance(head, DeepSeekHead), type(head)
    return [module for module in head.layers if isinstance(module, MTPModule)]


def _layer(module: MTPModule, lm: TextLM) -> dict[str, Tensor]:
    """The tensors of one layer under their names; biases of the trunk's layers are zero in it."""
    layer: dict[str, Tensor] = {}
    for name, value in module.state_dict().items():
        if name == "eh_proj.weight" and module.order == "hidden_first":
            value = torch.cat(value.chunk(2, 1)[::-1], 1)
        start = next((ours for ours in OWN if name.startswith(ours)), "")
        layer[OWN.get(start, "") + name.removeprefix(start)] = value
    trunk = lm.model.base_model.layers[-1].state_dict()
    return layer | {name: torch.zeros_like(value) for name, value in trunk.items() if name not in layer}


def _ours(name: str) -> str:
    """The name of a layer's tensor in a module."""
    if name.startswith(("enorm.", "hnorm.", "eh_proj.")):
        return name
    return name.replace("shared_head.norm.", "norm.") if name.startswith("shared_head.") else f"block.{name}"
