"""EAGLE-3 (Li et al. 2025, arXiv:2503.01840): states of several layers, no feature regression, trained as it drafts.

A map ``fc`` makes one state out of three layers' (low, middle, high). One block reads, side by side, the normalised
embedding of ``x_{t+1}`` and the normalised state; its residual is the state without the norm. The output goes through
``norm`` to the head's own output layer, and without that norm into the next step, in the place of ``fc``'s.

The published training unrolls 7 steps (the paper says 5) and weighs step k (from 0) with ``0.8 ** k``.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from speech_mtp.heads._sequential import Place, RecursiveHead
from speech_mtp.heads.base import PrivateUnembedding, TrunkShape
from speech_mtp.nn.blocks import BlockLinear
from speech_mtp.nn.fused import BlockLayer, BlockLayers, FusedLayers
from speech_mtp.nn.kv_cache import KVCache
from speech_mtp.nn.transformer import Attention, SwiGLU, rotary_rates


class WideLayer(nn.Module):
    """A block whose attention reads ``[embedding, state]``, twice as wide as what it adds to: the state, or the
    normalised state with ``norm_before_residual``."""

    def __init__(self, shape: TrunkShape, intermediate_size: int, norm_before_residual: bool = False) -> None:
        super().__init__()
        self.norm_before_residual = norm_before_residual
        self.input_layernorm = nn.RMSNorm(shape.dim, eps=shape.rms_norm_eps)
        self.hidden_norm = nn.RMSNorm(shape.dim, eps=shape.rms_norm_eps)
        self.self_attn = Attention(shape.block(2 * shape.dim))
        self.post_attention_layernorm = nn.RMSNorm(shape.dim, eps=shape.rms_norm_eps)
        self.mlp = SwiGLU(shape.dim, intermediate_size)

    def in_blocks(self) -> BlockLayer | None:
        """The layer for the compiled kernels, once it is packed; None where its weights are not in blocks."""
        products = (*self.self_attn.products, *self.mlp.products)
        if self.norm_before_residual or not all(isinstance(product, BlockLinear) for product in products):
            return None
        qkv, leave, gate_up, down = products
        norms = (self.hidden_norm, self.post_attention_layernorm, self.input_layernorm)
        enter, middle, side = (norm.weight.detach().float() for norm in norms)
        return BlockLayer(enter, qkv, None, None, leave, middle, gate_up, down, side)

    def forward(self, hidden: Tensor, x: Tensor, index: Tensor, mask: Tensor, cache: KVCache) -> Tensor:
        normed = self.hidden_norm(hidden)
        both = torch.cat([self.input_layernorm(x), normed], -1)
        hidden = (normed if self.norm_before_residual else hidden) + self.self_attn(both, index, mask, cache)
        out: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return out


class Eagle3(RecursiveHead):
    """``depth`` steps. ``taps`` default to the inputs of layers 2, L // 2 and L - 3 (each once); ``fc`` is ``mix.map``.

    ``private`` gives the head its own output layer over the draft vocabulary, started from the trunk's rows at
    :meth:`bind`; choose the vocabulary before. Otherwise it uses the trunk's. ``intermediate_size`` is that of the
    feed-forward layer (default: the trunk's). ``norm_before_residual`` is for heads that were trained elsewhere with
    the normalised state as residual.
    """

    def __init__(
        self,
        shape: TrunkShape,
        depth: int = 5,
        private: bool = True,
        taps: tuple[int, ...] | None = None,
        feed: str = "concat",
        draft_vocab: int | None = None,
        intermediate_size: int | None = None,
        norm_before_residual: bool = False,
    ) -> None:
        super().__init__(shape, depth, default_taps(shape.num_layers) if taps is None else taps, feed, draft_vocab)
        self.intermediate_size = intermediate_size or shape.intermediate_size
        self.layer = WideLayer(shape, self.intermediate_size, norm_before_residual)
        self.norm = nn.RMSNorm(shape.dim, eps=shape.rms_norm_eps)
        if private:
            self.private = PrivateUnembedding(1, shape.dim, self.num_tokens)
        self._fused: FusedLayers | None = None

    def prepare(self, blocks: str | None = None) -> Self:
        super().prepare(blocks)
        self._fused = None
        shape, layer = self.shape, self.layer.in_blocks()
        sizes = (shape.dim, self.intermediate_size, shape.head_dim, shape.num_heads)
        if layer is not None and FusedLayers.can_be(*sizes):
            rates = rotary_rates(shape.head_dim // 2, shape.rope_theta, layer.enter.device)
            norm, eps = self.norm.weight.detach().float(), shape.rms_norm_eps
            heads = (shape.num_heads, shape.num_kv_heads, shape.head_dim)
            self._fused = FusedLayers(BlockLayers([layer], norm, *heads, rates, eps))
        return self

    def step_at(self, hidden: Tensor, x: Tensor, place: Place) -> Tensor:
        if self._fused is None or place.committed.keys.dtype != torch.float32:
            return super().step_at(hidden, x, place)
        leaving, _ = self._fused(hidden, place.at, place.ancestors, place.committed, (1,), side=x)
        return leaving[:, :, 0].to(hidden.dtype)

    def readable(self, output: Tensor) -> Tensor:
        out: Tensor = self.norm(output)
        return out

    def step(self, hidden: Tensor, x: Tensor, index: Tensor, mask: Tensor, cache: KVCache) -> Tensor:
        out: Tensor = self.layer(hidden, x, index, mask, cache)
        return out


def default_taps(num_layers: int) -> tuple[int, ...]:
    """A low, a middle and a high layer, fewer where they coincide. Raises ValueError for less than three layers."""
    if num_layers < 3:
        raise ValueError(f"The trunk has {num_layers} layers, too few for EAGLE-3's choice; name the taps.")
    return tuple(sorted({2, num_layers // 2, num_layers - 3}))
