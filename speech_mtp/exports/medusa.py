"""Medusa's own layout, as text-generation-inference and TensorRT-LLM read it: ``medusa_lm_head.safetensors``.

Head i predicts ``x_{t+2+i}`` from ``h_t`` after the final norm. With ``{i}.{m}.weight``, m being the number of blocks,
every head has an output layer (version 1); without, they use the target's, and have one block each (version 2).
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from speech_mtp.exports.base import (
    HeadExport,
    output_rows,
    read_json,
    read_tensors,
    reads_more,
    restored,
    save_json,
    save_tensors,
    shape_of,
    shares_bias,
    unlike_medusa,
)
from speech_mtp.heads.base import MTPHead
from speech_mtp.heads.medusa import Medusa as MedusaHead
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.storage import CONFIG

WEIGHTS = "medusa_lm_head.safetensors"
THEIRS = re.compile(r"(\d+)\.(\d+)\.(linear\.weight|linear\.bias|weight)")


class Medusa(HeadExport):
    """``{i}.{j}.linear.{weight,bias}`` of block j of head i and, unless the target's is used, ``{i}.{m}.weight``."""

    holds = "medusa heads of all tokens that read the last layer"

    def obstacle(self, head: MTPHead, lm: TextLM) -> str | None:
        part = None if head.token_map is None else "it drafts from a part of the vocabulary"
        return unlike_medusa(head) or part or reads_more(head) or shares_bias(head, lm)

    def fill(self, folder: Path, head: MTPHead, lm: TextLM) -> None:
        state, depth = head.state_dict(), _depth(head)
        tensors = {n.removeprefix("blocks."): value for n, value in state.items() if n.startswith("blocks.")}
        if head.private is not None or depth != 1:
            rows = output_rows(head) if head.private is not None else output_rows(head) * head.num_depths
            tensors |= {f"{i}.{depth}.weight": value for i, value in enumerate(rows)}
        save_tensors(folder / WEIGHTS, tensors)
        config = {
            "medusa_num_heads": head.num_depths,
            "medusa_num_layers": depth,
            "base_model_name_or_path": lm.model.name_or_path or None,
        }
        save_json(folder / CONFIG, config)

    def read(self, folder: str | Path, lm: TextLM) -> MTPHead:
        """Heads and blocks are counted by the tensors: configurations in use are wrong about them."""
        read_json(Path(folder) / CONFIG)
        tensors = read_tensors(Path(folder) / WEIGHTS)
        found = {name: THEIRS.fullmatch(name) for name in tensors}
        strange = sorted(name for name, match in found.items() if match is None)
        if strange or not found:
            raise ValueError(f"{folder} holds no Medusa heads of this layout: {', '.join(strange) or 'no tensors'}.")
        matches = {name: match for name, match in found.items() if match}
        heads = 1 + max(int(m[1]) for m in matches.values())
        depth = 1 + max((int(m[2]) for m in matches.values() if m[3] != "weight"), default=-1)
        private = any(m[3] == "weight" for m in matches.values())
        state: dict[str, Tensor] = {}
        for name, m in matches.items():
            ours = f"private.{m[1]}.weight" if m[3] == "weight" else f"blocks.{name}"
            state[ours] = tensors[name].float()
        head = MedusaHead(shape_of(lm), num_heads=heads, num_layers=depth, private=private)
        return restored(head, state, lm, Path(folder))


def _depth(head: MTPHead) -> int:
    """How many blocks every head has."""
    found = [re.fullmatch(r"blocks\.0\.(\d+)\.linear\.weight", name) for name in head.state_dict()]
    return 1 + max((int(m[1]) for m in found if m), default=-1)
