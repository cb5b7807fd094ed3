"""The format of the ``speculators`` library (vllm-project/speculators) for EAGLE-3.

``vllm serve FOLDER`` serves it together with the target that it names. Unlike vLLM's own layout it holds a copy of the
target's embedding.
"""

from __future__ import annotations

from pathlib import Path

import torch

from speech_mtp.exports import _eagle3
from speech_mtp.exports.base import HeadExport, read_folder, save_json, save_tensors
from speech_mtp.heads.base import MTPHead
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.storage import CONFIG, WEIGHTS

VERSION = "0.9.0"
"""The release of ``speculators`` whose format this is."""


class Speculators(HeadExport):
    """``speculators_model_type`` is ``eagle3``; ``speculative_tokens`` are the head's steps."""

    holds = _eagle3.HOLDS

    def obstacle(self, head: MTPHead, lm: TextLM) -> str | None:
        return _eagle3.obstacle(head, lm)

    def fill(self, folder: Path, head: MTPHead, lm: TextLM) -> None:
        table = lm.embed(torch.arange(head.shape.vocab_size, device=lm.device)).float()
        save_tensors(folder / WEIGHTS, {**_eagle3.tensors_of(head), "embed_tokens.weight": table})
        target = lm.model.config
        greedy = {
            "proposal_type": "greedy",
            "speculative_tokens": head.num_depths,
            "verifier_accept_k": 1,
            "accept_tolerance": 0.0,
        }
        config = {
            "architectures": ["Eagle3Speculator"],
            "speculators_model_type": "eagle3",
            "speculators_version": VERSION,
            "speculators_config": {
                "algorithm": "eagle3",
                "proposal_methods": [greedy],
                "default_proposal_method": "greedy",
                "verifier": {
                    "name_or_path": target.name_or_path or None,
                    "architectures": target.architectures or [type(lm.model).__name__],
                },
            },
            "transformer_layer_config": _eagle3.layer_config(head, lm),
            "draft_vocab_size": head.num_tokens,
            "target_hidden_size": None,
            "norm_before_residual": _eagle3.norm_before_residual(head),
            "norm_before_fc": False,
            _eagle3.IDS: _eagle3.written_taps(head)[0],
            "embed_requires_grad": False,
            "dtype": "float32",
        }
        save_json(folder / CONFIG, config)

    def read(self, folder: str | Path, lm: TextLM) -> MTPHead:
        """The embedding is that of ``lm``; the copy must not differ."""
        config, tensors = read_folder(folder)
        if config.get("speculators_model_type") != "eagle3":
            raise ValueError(f"{folder} holds no EAGLE-3 head of speculators; give the folder of one.")
        methods = (config.get("speculators_config") or {}).get("proposal_methods") or [{}]
        steps = methods[0].get("speculative_tokens")
        layer = {"model_type": "qwen3", **config["transformer_layer_config"]}  # qwen3: what the library takes it for
        return _eagle3.head_of(Path(folder), config, layer, tensors, lm, **({"depth": steps} if steps else {}))
