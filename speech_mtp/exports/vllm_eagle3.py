"""The layout of vLLM's EAGLE-3 drafter (``vllm/model_executor/models/llama_eagle3.py``).

``vllm serve TRUNK --speculative-config '{"method": "eagle3", "model": FOLDER, "num_speculative_tokens": N}'``. The
embedding is the target's and not in the file. vLLM reads the ids of layers at the top level. SGLang, which reads the
same layout, takes those in ``eagle_config``, and knows no ``norm_before_residual``: for it that must be false.
"""

from __future__ import annotations

from pathlib import Path

from speech_mtp.exports import _eagle3
from speech_mtp.exports.base import HeadExport, read_folder, save_json, save_tensors
from speech_mtp.heads.base import MTPHead
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.storage import CONFIG, WEIGHTS


class VllmEagle3(HeadExport):
    """One wide Llama layer; ``norm_before_residual`` is always said, for readers differ in the default."""

    holds = _eagle3.HOLDS

    def obstacle(self, head: MTPHead, lm: TextLM) -> str | None:
        return _eagle3.obstacle(head, lm)

    def fill(self, folder: Path, head: MTPHead, lm: TextLM) -> None:
        save_tensors(folder / WEIGHTS, _eagle3.tensors_of(head))
        inputs, outputs = _eagle3.written_taps(head)
        config = {
            "architectures": ["LlamaForCausalLMEagle3"],
            **_eagle3.layer_config(head, lm),
            "draft_vocab_size": head.num_tokens,
            "target_hidden_size": lm.dim,
            "norm_before_residual": _eagle3.norm_before_residual(head),
            "eagle_config": {"use_aux_hidden_state": True, _eagle3.IDS: outputs},
            _eagle3.IDS: inputs,
            "dtype": "float32",
        }
        save_json(folder / CONFIG, config)

    def read(self, folder: str | Path, lm: TextLM) -> MTPHead:
        """A head of this layout or of EAGLE-3's own. It has no place for the number of steps; the head gets its
        default."""
        config, tensors = read_folder(folder)
        return _eagle3.head_of(Path(folder), config, config, tensors, lm)
