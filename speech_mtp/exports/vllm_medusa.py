"""The layout of the Medusa drafter that older releases of vLLM have (``vllm/model_executor/models/medusa.py``).

``vllm serve TRUNK --speculative-config '{"method": "medusa", "model": FOLDER, "num_speculative_tokens": N}'``, where N
is the number of heads. vLLM 0.33 reads no Medusa heads at all: for it train an EAGLE-3 head, or serve Medusa's own
layout (:mod:`speech_mtp.exports.medusa`) with another program. Head i predicts ``x_{t+2+i}`` from ``h_t`` after the
final norm. vLLM drafts the best token of each head, and loads the blocks' biases only where ``medusa_fc_bias`` is true.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speech_mtp.exports.base import (
    HeadExport,
    output_rows,
    read_folder,
    reads_more,
    restored,
    save_json,
    save_tensors,
    shape_of,
    shares_bias,
    unlike_medusa,
)
from speech_mtp.heads.base import MTPHead
from speech_mtp.heads.medusa import Medusa
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.storage import CONFIG, WEIGHTS

BLOCK = re.compile(r"blocks\.(\d+)\.(\d+)\.linear\.(weight|bias)")


class VllmMedusa(HeadExport):
    """``blocks.{i}.layers.{j}.{weight,bias}``, ``lm_heads.{i}.weight`` (0 alone if all share it) and, for a reduced
    draft vocabulary, ``token_map``."""

    holds = "medusa heads that read the last layer"

    def obstacle(self, head: MTPHead, lm: TextLM) -> str | None:
        return unlike_medusa(head) or reads_more(head) or shares_bias(head, lm)

    def fill(self, folder: Path, head: MTPHead, lm: TextLM) -> None:
        blocks = {BLOCK.fullmatch(name): value for name, value in head.state_dict().items()}
        tensors = {f"blocks.{m[1]}.layers.{m[2]}.{m[3]}": value for m, value in blocks.items() if m}
        tensors |= {f"lm_heads.{i}.weight": rows for i, rows in enumerate(output_rows(head))}
        if head.token_map is not None:
            tensors["token_map"] = head.token_map
        save_tensors(folder / WEIGHTS, tensors)
        # The loader takes every key with "num" and "heads" in it for num_heads: no other such key may stand here.
        config = {
            "architectures": ["MedusaModel"],
            "model_type": "medusa",
            "hidden_size": lm.dim,
            "vocab_size": lm.vocab_size,
            "num_heads": head.num_depths,
            "num_hidden_layers": 1 + max((int(m[2]) for m in blocks if m), default=-1),
            "max_paths": 64,
            "topk": 10,
            "truncated_vocab_size": head.num_tokens,
            "original_lm_head": head.private is None,
            "medusa_fc_bias": True,
            "logit_scale": 1.0,
            "dtype": "float32",
        }
        save_json(folder / CONFIG, config)

    def read(self, folder: str | Path, lm: TextLM) -> MTPHead:
        """Blocks without biases get biases of zero; an output layer for all heads is copied for each."""
        config, tensors = read_folder(folder)
        if config.get("logit_scale", 1.0) != 1.0:
            raise ValueError(f"The head in {folder} scales its logits, which no head here does.")
        tensors = {name.replace("medusa_heads.", ""): value for name, value in tensors.items()}
        rows = config.get("truncated_vocab_size")
        head = Medusa(
            shape_of(lm),
            num_heads=int(config["num_heads"]),
            num_layers=int(config["num_hidden_layers"]),
            private=True,
            draft_vocab=None if rows in (None, lm.vocab_size) else rows,
        )
        return restored(head, _state(head, config, tensors), lm, Path(folder))


def _state(head: Medusa, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The head's own names for what it finds in ``tensors``; what is missing is missing."""
    state: dict[str, Tensor] = {}
    for name, value in head.state_dict().items():
        block, output = BLOCK.fullmatch(name), re.fullmatch(r"private\.(\d+)\.weight", name)
        theirs = name
        if block:
            theirs = f"blocks.{block[1]}.layers.{block[2]}.{block[3]}"
        elif output:
            theirs = f"lm_heads.{0 if config.get('original_lm_head') else output[1]}.weight"
        if block and block[3] == "bias" and not config.get("medusa_fc_bias"):
            state[name] = torch.zeros_like(value)
        elif theirs in tensors:
            state[name] = tensors[theirs]
    return state
