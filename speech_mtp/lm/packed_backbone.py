"""A backbone for reading text alone, straight from its files: the layers that are used and no others.

It gives what :class:`speech_mtp.lm.backbone.Backbone` gives, up to rounding, without importing ``transformers``: the
weights are read from safetensors in the dtype that they are stored in, and the layers are those of
:class:`speech_mtp.lm.decoder.Decoder` in float32, or with weights in ``blocks`` (:mod:`speech_mtp.nn.blocks`), which is
faster. It cannot be trained and writes no text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from speech_mtp.lm.block_weights import BlocksOf
from speech_mtp.lm.decoder import FAMILIES, Decoder
from speech_mtp.lm.reader import TextReader
from speech_mtp.lm.weight_files import WeightFiles
from speech_mtp.nn.kv_cache import KVCache
from speech_mtp.nn.row_pool import Chains, RowPool

PARTS = {"self_attn": ("q_proj", "k_proj", "v_proj", "o_proj"), "mlp": ("gate_proj", "up_proj", "down_proj")}
NORMS = ("input_layernorm", "post_attention_layernorm")


def fits(folder: Path) -> bool:
    """Whether the language model in ``folder`` is read here: of :data:`FAMILIES`, full attention, plain RoPE."""
    if not (folder / "config.json").is_file() or not (folder / "tokenizer.json").is_file():
        return False
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    windowed = config.get("sliding_window") and config.get("use_sliding_window", True)
    return (
        config.get("model_type") in FAMILIES
        and config.get("hidden_act") == "silu"
        and not windowed
        and (config.get("rope_parameters") or config.get("rope_scaling") or {}).get("rope_type", "default") == "default"
    )


class PackedBackbone(TextReader):
    """The first ``hidden_layer`` layers (-1: all, and the final norm) of the causal LM in ``folder``.

    ``prefix`` are the tokens of the model's chat format before every text. Raises ValueError for a layer that the
    model does not have, and OSError for files that cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        hidden_layer: int,
        prefix: Sequence[int],
        blocks: BlocksOf | None = None,
    ) -> None:
        super().__init__()
        config = SimpleNamespace(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
        total = config.num_hidden_layers
        if hidden_layer != -1 and not 1 <= hidden_layer <= total:
            raise ValueError(
                f"hidden_layer is {hidden_layer}, but the backbone has {total} layers; use 1 to {total}, or -1."
            )
        self.dim, self.hidden_layer = config.hidden_size, hidden_layer
        self.fingerprint, self.prefix = fingerprint, list(prefix)
        self.text_tokens = Tokenizer.from_file(str(folder / "tokenizer.json"))
        whole = hidden_layer in (-1, total)
        weights = WeightFiles(folder)
        self._embed = weights["model.embed_tokens.weight"]
        self._decoder = Decoder(_skeleton(weights, config, total if whole else hidden_layer), blocks=blocks)
        self._tap = -1 if whole else hidden_layer

    @property
    def device(self) -> torch.device:
        return self._embed.device

    def _open_pool(self) -> RowPool:
        return RowPool(*self._shape, self.device, self._decoder.cache_dtype)

    @property
    def _shape(self) -> tuple[int, int, int]:
        """Layers, heads of keys, and the width of one."""
        return len(self._decoder.layers), self._decoder.sizes[1], self._decoder.head_dim

    def _read_chains(self, chains: Chains, tokens: list[list[int]]) -> Sequence[Tensor]:
        ids = torch.tensor([[token for row in tokens for token in row]])
        return self._states(ids, chains.places, chains)[0].split(chains.counts)

    @torch.inference_mode()
    def _read_whole(self, ids: Tensor) -> Tensor:
        layers, heads, width = self._shape
        cache = KVCache.empty(layers, len(ids), heads, ids.shape[1], width, self.device, self._decoder.cache_dtype)
        return self._states(ids, torch.arange(ids.shape[1]).expand(len(ids), -1), cache)

    def _states(self, ids: Tensor, index: Tensor, cache: KVCache | Chains) -> Tensor:
        """States ``[B, T, D]`` of tokens at positions ``index``, both ``[B, T]``."""
        x = F.embedding(ids, self._embed).float()
        return self._decoder.nodes(x, index, None, cache, (self._tap,))[0][:, :, 0]


def _skeleton(weights: WeightFiles, config: Any, count: int) -> Any:
    """What :class:`Decoder` looks at in a causal LM of ``transformers``, with the first ``count`` layers; a layer is
    read when it is reached, so that no more than one is held twice."""

    def module(name: str, norm: bool = False) -> Any:
        bias = f"{name}.bias"
        return SimpleNamespace(
            weight=weights[f"{name}.weight"].float(),
            bias=weights[bias].float() if bias in weights else None,
            **({"variance_epsilon": config.rms_norm_eps} if norm else {}),
        )

    def layer(i: int) -> Any:
        place = f"model.layers.{i}"
        parts = {
            part: SimpleNamespace(**{name: module(f"{place}.{part}.{name}") for name in names})
            for part, names in PARTS.items()
        }
        for name in ("q_norm", "k_norm"):
            if f"{place}.self_attn.{name}.weight" in weights:
                setattr(parts["self_attn"], name, module(f"{place}.self_attn.{name}", norm=True))
        return SimpleNamespace(**parts, **{name: module(f"{place}.{name}", norm=True) for name in NORMS})

    heads, theta = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads, _theta(config)
    decoder = SimpleNamespace(
        layers=_Layers(layer, count), norm=module("model.norm", norm=True), rotary_emb=_Rotary(heads, theta)
    )
    some = torch.zeros(1)  # the Decoder asks it for device and dtype
    return SimpleNamespace(base_model=decoder, config=config, get_input_embeddings=lambda: SimpleNamespace(weight=some))


@dataclass(frozen=True)
class _Layers:
    """``count`` layers, each read when it is asked for."""

    read: Callable[[int], Any]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Any:
        return self.read(i)


def _theta(config: Any) -> float:
    rope = getattr(config, "rope_parameters", None) or {}
    return float(rope.get("rope_theta") or getattr(config, "rope_theta", None) or 10_000.0)


class _Rotary:
    """Angles of positions (Su et al. 2021): ``dim / 2`` frequencies, once for each half of a head."""

    attention_scaling = 1.0

    def __init__(self, dim: int, theta: float) -> None:
        self.inv_freq = 1.0 / theta ** (torch.arange(0, dim, 2).float() / dim)

    def __call__(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        angles = index[..., None].float() * self.inv_freq
        angles = torch.cat([angles, angles], -1)
        return angles.cos(), angles.sin()
