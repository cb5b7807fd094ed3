"""The block of today's language models: RMS norms, rotary attention with grouped keys, SwiGLU (LLaMA's block).

The package has this block three times, because the parameters are stored and multiplied in three ways. What does not
depend on that is shared: :func:`rotate`, :func:`gated`, :func:`speech_mtp.nn.kv_cache.attention`.

- :class:`LlamaBlock`, here: heads, and small trunks (:mod:`speech_mtp.lm.causal_lm`). Its parameters carry the names
  of ``transformers``' Llama layers, so that weights go in and out unchanged, and its width may be another inside than
  outside (``dim_in``).
- :class:`speech_mtp.lm.talker.TalkerBlock`: the talker, trained from nothing. Queries, keys and values are one
  parameter, and so are gate and up: fewer products a step. It has dropout, and no grouped keys.
- :class:`speech_mtp.lm.decoder.Decoder`: the trunk of a text model, for decoding only. It is no module: it packs the
  weights of layers that ``transformers`` made, keeps their rotary angles (families scale them in their own ways) and
  (on a CPU) the residual stream in float32, and can be compiled, or *invariant*.

A block keeps its keys and values wherever the caller says; training, prefill and drafting are the same lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp.nn.kv_cache import KVCache, attention
from speech_mtp.nn.packed import FastLinear, can_pack, fast_linear
from speech_mtp.nn.visibility import Mask

ROTARY_BASE = 10_000.0


def rotate(x: Tensor, index: Tensor, base: float = ROTARY_BASE) -> Tensor:
    """Rotary position embedding (Su et al. 2021): ``x [B, H, T, d]``, ``index [B, T]``."""
    angle = index[:, None, :, None].float() * rotary_rates(x.shape[-1] // 2, base, x.device)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


@cache
def rotary_rates(half: int, base: float, device: torch.device) -> Tensor:
    """How fast the angles of the ``half`` pairs of numbers of a head turn, ``[half]``."""
    with torch.inference_mode(False):  # kept for training too
        return base ** (-torch.arange(half, device=device, dtype=torch.float32) / half)


def gated(gate_up: Tensor) -> Tensor:
    """SwiGLU between its products (Shazeer 2020): gate and up ``[..., 2 I]`` -> ``SiLU(gate) up``, ``[..., I]``."""
    gate, up = gate_up.chunk(2, -1)
    return F.silu(gate) * up


def causal(x: Tensor) -> tuple[Tensor, Tensor]:
    """Positions ``[1, T]`` and mask ``[1, 1, T, T]`` of whole texts ``x [B, T, D]``: each sees itself and the past."""
    t = x.shape[1]
    mask = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
    return torch.arange(t, device=x.device)[None], mask[None, None]


def causal_mask(valid: Tensor) -> Tensor:
    """``valid [B, T]`` -> ``[B, 1, T, T]`` bool: each position sees itself and the valid ones before it."""
    _, past = causal(valid[..., None])
    own = torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    return (past & valid[:, None, None]) | own


def packs(weight: Tensor) -> bool:
    """Whether ``weight`` is where packing it pays."""
    return weight.device.type == "cpu" and can_pack(weight.dtype)


@dataclass(frozen=True)
class BlockShape:
    """Sizes of a block. ``dim_in`` (default ``dim``) is the width that queries, keys and values are made from."""

    dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = ROTARY_BASE
    dim_in: int | None = None


class Attention(nn.Module):
    """Queries of ``x`` look at keys and values of ``x`` and of what ``cache`` holds, where ``layer`` is its place."""

    def __init__(self, shape: BlockShape, layer: int = 0) -> None:
        super().__init__()
        self.shape, self.layer = shape, layer
        width, size = shape.dim_in or shape.dim, shape.head_dim
        self.q_proj = nn.Linear(width, shape.num_heads * size, bias=False)
        self.k_proj = nn.Linear(width, shape.num_kv_heads * size, bias=False)
        self.v_proj = nn.Linear(width, shape.num_kv_heads * size, bias=False)
        self.o_proj = nn.Linear(shape.num_heads * size, shape.dim, bias=False)
        self._joined: FastLinear | None = None

    def pack(self, blocks: str | None = None) -> None:
        """From now on one product makes queries, keys and values, of packed weights (or of weights in ``blocks``), and
        attention is computed in float32, which is faster on a CPU. Not for training."""
        weights = [layer.weight for layer in (self.q_proj, self.k_proj, self.v_proj)]
        if packs(weights[0]):
            self._joined = fast_linear(torch.cat(weights), None, blocks)

    @property
    def products(self) -> tuple[Any, Any]:
        """What multiplies once all is packed: queries, keys and values at once; what leaves."""
        return self._joined, self.o_proj.forward

    def heads(self, x: Tensor) -> Tensor:
        """``[B, T, H * d]`` -> ``[B, H, T, d]``."""
        return x.unflatten(-1, (-1, self.shape.head_dim)).transpose(1, 2)

    def keys_values(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """``x [B, T, dim_in]`` at positions ``index [B, T]`` -> keys and values ``[B, H_kv, T, d]``."""
        return rotate(self.heads(self.k_proj(x)), index, self.shape.rope_theta), self.heads(self.v_proj(x))

    def queries(self, x: Tensor, index: Tensor) -> Tensor:
        """``x [B, T, dim_in]`` at positions ``index [B, T]`` -> ``[B, H, T, d]``."""
        return rotate(self.heads(self.q_proj(x)), index, self.shape.rope_theta)

    def attend(self, x: Tensor, index: Tensor, keys: Tensor, values: Tensor, mask: Mask) -> Tensor:
        """``mask [B, 1, T, S]`` bool (True: may look) over the S keys -> ``[B, T, D]``."""
        y = attention(self.queries(x, index), keys, values, mask)
        out: Tensor = self.o_proj(y.transpose(1, 2).flatten(2))
        return out

    def forward(self, x: Tensor, index: Tensor, mask: Mask, cache: KVCache | None = None) -> Tensor:
        """``x [B, T, dim_in]``, ``index [B, T]``; with a cache ``mask`` is a tensor, whose S is at most its size."""
        if cache is None:
            return self.attend(x, index, *self.keys_values(x, index), mask)
        assert isinstance(mask, Tensor), f"over a cache the mask is a tensor, not {type(mask).__name__}"
        if self._joined is not None:
            return self._packed(self._joined, x, index, mask, cache)
        kept = cache.write(self.layer, *self.keys_values(x, index), mask.shape[-1])
        return self.attend(x, index, *kept, mask)

    def _packed(self, joined: FastLinear, x: Tensor, index: Tensor, mask: Tensor, cache: KVCache) -> Tensor:
        s = self.shape
        each = joined(x).float().unflatten(-1, (-1, s.head_dim)).transpose(1, 2)
        turned = rotate(each[:, : -s.num_kv_heads], index, s.rope_theta)
        kept = cache.keys.dtype
        keys, values = cache.write(
            self.layer, turned[:, s.num_heads :].to(kept), each[:, -s.num_kv_heads :].to(kept), mask.shape[-1]
        )
        y = attention(turned[:, : s.num_heads], keys.float(), values.float(), mask)
        out: Tensor = self.o_proj(y.transpose(1, 2).flatten(2).to(x.dtype))
        return out


class SwiGLU(nn.Module):
    """``down(SiLU(gate x) * up x)``."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)
        self._joined: FastLinear | None = None

    def pack(self, blocks: str | None = None) -> None:
        """From now on one product of packed weights, or of weights in ``blocks``, makes gate and up. Not for
        training."""
        if packs(self.gate_proj.weight):
            self._joined = fast_linear(torch.cat([self.gate_proj.weight, self.up_proj.weight]), None, blocks)

    @property
    def products(self) -> tuple[Any, Any]:
        """What multiplies once all is packed: gate and up at once; down."""
        return self._joined, self.down_proj.forward

    def forward(self, x: Tensor) -> Tensor:
        if self._joined is not None:
            short: Tensor = self.down_proj(gated(self._joined(x)))
            return short
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class LlamaBlock(nn.Module):
    """Pre-norm attention and SwiGLU with residuals, with the parameter names of ``transformers``."""

    def __init__(self, shape: BlockShape, layer: int = 0) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(shape.dim_in or shape.dim, eps=shape.rms_norm_eps)
        self.self_attn = Attention(shape, layer)
        self.post_attention_layernorm = nn.RMSNorm(shape.dim, eps=shape.rms_norm_eps)
        self.mlp = SwiGLU(shape.dim, shape.intermediate_size)

    def forward(self, x: Tensor, index: Tensor, mask: Mask, cache: KVCache | None = None) -> Tensor:
        """``x [B, T, D]``, ``index [B, T]``, ``mask [B, 1, T, S]`` bool -> ``[B, T, D]``."""
        x = x + self.self_attn(self.input_layernorm(x), index, mask, cache)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out
