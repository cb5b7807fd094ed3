"""The talker: a small causal transformer over speech positions (pre-norm, rotary, SwiGLU; LLaMA's block).

It knows nothing of text, codes or sampling: vectors in, hidden states out. Training, prefill and verification
of a draft are the same lines; the first two merely have no cache.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speech_mtp.lm.cache import KVCache
from speech_mtp.nn.blocks import BlockLinear, Blocks
from speech_mtp.nn.fused import BlockLayer, BlockLayers, FusedLayers
from speech_mtp.nn.kv_cache import attention
from speech_mtp.nn.transformer import ROTARY_BASE, gated, rotary_rates, rotate
from speech_mtp.types import LMOutput


class TalkerBlock(nn.Module):
    """Attention and SwiGLU with RMS norms; ``layer`` is its place in the cache. ``dropout`` is on what each adds.

    Why it is not :class:`~speech_mtp.nn.transformer.LlamaBlock` is told there.
    """

    def __init__(self, dim: int, heads: int, hidden: int, layer: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.layer = heads, layer
        self.dropout = nn.Dropout(dropout)
        self.norm_attention, self.norm_mlp = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def in_blocks(self, kind: str) -> BlockLayer:
        """Its weights for the compiled kernels."""
        qkv, out, gate_up, down = (
            BlockLinear(Blocks.of(layer.weight, kind)) for layer in (self.qkv, self.out, self.gate_up, self.down)
        )
        enter, middle = (norm.weight.detach().float() for norm in (self.norm_attention, self.norm_mlp))
        return BlockLayer(enter, qkv, None, None, out, middle, gate_up, down)

    def forward(self, x: Tensor, index: Tensor, mask: Tensor, cache: KVCache | None) -> Tensor:
        q, k, v = self.qkv(self.norm_attention(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, index), rotate(k, index)
        if cache is not None:
            k, v = cache.write(self.layer, k, v)
        x = x + self.dropout(self.out(attention(q, k, v, mask).transpose(1, 2).flatten(2)))
        return x + self.dropout(self.down(gated(self.gate_up(self.norm_mlp(x)))))


class Talker(nn.Module):
    """``x [B, T, D]`` -> hidden states; ``num_layers`` blocks of width ``dim``."""

    def __init__(self, dim: int, num_layers: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % (2 * heads):
            raise ValueError(f"The talker's dim {dim} does not divide into {heads} heads of even size.")
        self.dim, self.heads = dim, heads
        self.blocks = nn.ModuleList(TalkerBlock(dim, heads, hidden, i, dropout) for i in range(num_layers))
        self.norm = nn.RMSNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def in_blocks(self, kind: str) -> FusedLayers | None:
        """The same layers for decoding, with weights in blocks of ``kind``; None where the kernels are not there, or do
        not take these sizes."""
        blocks = [block for block in self.blocks if isinstance(block, TalkerBlock)]
        hidden, head_dim = blocks[0].down.in_features, self.dim // self.heads
        if not FusedLayers.can_be(self.dim, hidden, head_dim, self.heads):
            return None
        rates = rotary_rates(head_dim // 2, ROTARY_BASE, self.norm.weight.device)
        layers = [block.in_blocks(kind) for block in blocks]
        norm, eps = self.norm.weight.detach().float(), torch.finfo(torch.float32).eps
        return FusedLayers(BlockLayers(layers, norm, self.heads, self.heads, head_dim, rates, eps))

    def open(self, rows: int, size: int, device: torch.device) -> KVCache:
        """An empty cache with room for ``size`` positions per row."""
        return KVCache.empty(len(self.blocks), rows, self.heads, size, self.dim // self.heads, device)

    def forward(
        self, x: Tensor, index: Tensor, mask: Tensor, cache: KVCache | None = None, taps: tuple[int, ...] = (-1,)
    ) -> LMOutput:
        """``index [B, T]``, ``mask [B, 1, T, S]`` bool (True: may look). With a cache, S is its size. A tap k is what
        enters block k, -1 the top after the final norm."""
        x = self.dropout(x.to(self.norm.weight.dtype))  # where products are in bfloat16, the sum of layers is not
        found: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks):
            found[i] = x
            x = block(x, index, mask, cache)
        found[-1] = self.norm(x)
        return LMOutput(torch.stack([found[tap] for tap in taps], 2), final=found[-1])
