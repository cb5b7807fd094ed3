"""A causal LM as a folder of ``transformers``: ``config.json``, ``model.safetensors`` and the tokenizer's files.

Reading and writing need no ``transformers``. Models whose layers differ from Llama's in anything are refused by name:
what is read must be trained as what it is.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from speech_mtp.lm.causal_lm import CausalLM, CausalLMConfig
from speech_mtp.lm.fingerprint import check_weights
from speech_mtp.storage import CONFIG, WEIGHTS, load_weights, new_folder

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
PLAIN = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1}
"""Settings of a Llama that our block has no other value for."""


def write_llama(lm: CausalLM, folder: Path, tokenizer: Path) -> None:
    """Write ``lm`` as ``folder``, whole or not at all, with the tokenizer's files of the folder ``tokenizer``."""
    ends = _ends(tokenizer)
    config = _config_of(lm) | ends
    with new_folder(folder) as aside:
        state = {name: value.detach().cpu().contiguous() for name, value in lm.state_dict().items()}
        save_file(state, aside / WEIGHTS, metadata={"format": "pt"})
        for name in TOKENIZER_FILES:
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, aside / name)
        for name, values in ((CONFIG, config), ("generation_config.json", ends)):
            (aside / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def read_llama(folder: Path) -> CausalLM:
    """The model in ``folder``, in float32.

    Raises FileNotFoundError where there is none, and ValueError for another family, for a Llama with something that our
    block has not, and for damaged files.
    """
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"There is no language model in {folder}: it has no {CONFIG}; check the path.")
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / CONFIG} is damaged; get the model again.") from error
    _check(config, folder)
    check_weights(folder)
    lm = CausalLM(_sizes_of(config), config["vocab_size"])
    load_weights(lm, _weights(folder, lm.config.tied), folder)
    return lm


def _weights(folder: Path, tied: bool) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    try:
        for path in sorted(folder.glob("*.safetensors")):
            state |= load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or damaged; get the model again.") from error
    if tied:
        state.pop("lm_head.weight", None)
    return {name: value.float() for name, value in state.items() if not name.endswith("rotary_emb.inv_freq")}


def _check(config: Mapping[str, Any], folder: Path) -> None:
    kind = config.get("model_type")
    if kind != "llama":
        raise ValueError(f"{folder} holds a {kind!r} model; a trunk that is trained on must be a 'llama'.")
    for name, value in PLAIN.items():
        if config.get(name, value) != value:
            raise ValueError(f"{folder} has {name} {config[name]!r}; a trunk that is trained on must have {value!r}.")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling = rope.get("rope_type", rope.get("type", "default"))
    if scaling != "default":
        raise ValueError(f"{folder} scales its rotary angles ({scaling!r}); a trunk that is trained on must not.")


def _sizes_of(config: Mapping[str, Any]) -> CausalLMConfig:
    rope = config.get("rope_parameters") or {}
    return CausalLMConfig(
        dim=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        num_kv_heads=config.get("num_key_value_heads"),
        head_dim=config.get("head_dim"),
        intermediate_size=config["intermediate_size"],
        max_positions=config.get("max_position_embeddings", 2048),
        tied=config.get("tie_word_embeddings", False),
        rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
        rms_norm_eps=config.get("rms_norm_eps", 1e-6),
    )


def _config_of(lm: CausalLM) -> dict[str, Any]:
    shape, config = lm.config.block(), lm.config
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": lm.vocab_size,
        "hidden_size": config.dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tied,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,  # what releases of transformers before 5 read
        **PLAIN,
    }


def _ends(tokenizer: Path) -> dict[str, int | None]:
    """``bos_token_id`` and ``eos_token_id``, as the tokenizer's files name them. A ``pad_token_id`` is left out:
    ``transformers`` would never train the embedding of that token, which is often one of these two."""
    settings = json.loads((tokenizer / "tokenizer_config.json").read_text(encoding="utf-8"))
    added = json.loads((tokenizer / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    ids = {entry["content"]: entry["id"] for entry in added}

    def id_of(name: str) -> int | None:
        token = settings.get(name)
        return ids.get(token["content"] if isinstance(token, dict) else token)

    return {f"{name}_id": id_of(name) for name in ("bos_token", "eos_token")}
