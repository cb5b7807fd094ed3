"""The decoder of Llama-like models, written for drafts: a few nodes a step, behind a cache of our own.

It computes what the layers of ``transformers`` compute, from the same weights and faster (measured on a CPU in
``recipes/text_mtp/RESULTS.md``): queries, keys and values are one product and so are gate and up, weights are packed
(:mod:`speech_mtp.nn.packed`), the residual stream and attention are kept in float32 (half-precision attention is slow
there), and nothing is done that decoding does not need. Other families go through their own layers
(:class:`speech_mtp.lm.text_lm.TextLM`).

*Invariant* decoding gives a node the same numbers whether it is verified alone, in a chain, in a tree, in a batch or
read with a prompt, so that greedy text in bfloat16 does not depend on what drafts it. On a CPU it takes this:

- Products see rows in blocks of sizes that were tried to sum each row alike, never a single row
  (:class:`speech_mtp.nn.packed.PackedLinear`).
- Attention, whose sums change their order with the number of queries and with where the keys lie, is computed in
  float64, and so are the angles of the positions. Another order changes the last few of 53 bits, which rounding to the
  8 of bfloat16 hides: the odds of seeing it are about one in 2^40 a number, not none.
- Functions that are not rounded correctly (the exponential of SiLU) never run on so much that threads share it: where
  their shares meet, the library computes single numbers by another routine than whole vectors.

With weights in *blocks* (:mod:`speech_mtp.nn.blocks`) products are invariant as they are, and where the compiled
kernels are there, one call of them computes all layers (:mod:`speech_mtp.nn.fused`), invariant as well. Else attention
and angles are those of invariant decoding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp.lm.block_weights import BlocksOf
from speech_mtp.nn.blocks import BlockLinear, Blocks
from speech_mtp.nn.fused import BlockLayer, BlockLayers, FusedLayers
from speech_mtp.nn.kv_cache import Attends, KVCache
from speech_mtp.nn.packed import FastLinear, PackedLinear, is_invariant
from speech_mtp.nn.row_pool import Chains
from speech_mtp.nn.transformer import gated

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""``config.model_type`` of the families with this decoder: RMS norms, rotary positions, SwiGLU."""

_ROPES = ("default", "linear", "llama3", "yarn")  # others change with the length of the text


class Norm:
    """``w x / sqrt(mean(x^2) + eps)``. On a CPU as ``sqrt(D) w x / sqrt(|x|^2 + D eps)``: four passes over ``x`` where
    the library takes eight."""

    def __init__(self, module: Any, dtype: torch.dtype) -> None:
        self.weight, self.eps = module.weight.detach().to(dtype), module.variance_epsilon
        dim = len(self.weight)
        self.scaled = self.weight * dim**0.5
        self.least = torch.tensor(dim * self.eps, dtype=dtype, device=self.weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        return _normed(x, self.weight, self.eps, self.scaled, self.least)


def _normed(x: Tensor, weight: Tensor, eps: float, scaled: Tensor, least: Tensor) -> Tensor:
    if x.device.type != "cpu":
        return F.rms_norm(x, weight.shape, weight, eps)
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / (size * size).add_(least).sqrt_() * scaled


# What a layer does between its products and attention, as functions of tensors that a compiler can fuse.
def _added(x: Tensor, y: Tensor, weight: Tensor, eps: float, scaled: Tensor, least: Tensor) -> tuple[Tensor, Tensor]:
    """The residual stream ``x + y`` and its norm, both ``[B, M, D]``."""
    x = x + y
    return x, _normed(x, weight, eps, scaled, least)


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotation of halves as one product with the rolled vectors ``x [B, M, H, d]``: ``sin`` has the sign."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


_SHARED_FROM = 32_768
"""Numbers from which on torch lets threads share an element-wise function (``at::internal::GRAIN_SIZE``)."""


def _gated_alike(both: Tensor) -> Tensor:
    """:func:`~speech_mtp.nn.transformer.gated` in pieces that no threads share."""
    pieces = both.flatten(0, -2).split(max(1, 2 * _SHARED_FROM // both.shape[-1] - 1))
    if len(pieces) == 1:
        return gated(both)
    return torch.cat([gated(piece) for piece in pieces]).unflatten(0, both.shape[:-1])


@dataclass(frozen=True)
class _Maths:
    """The functions that a decoder runs: these, or the same compiled."""

    added: Callable[..., tuple[Tensor, Tensor]] = _added
    turned: Callable[..., Tensor] = _turned
    gated: Callable[..., Tensor] = gated


@dataclass(frozen=True)
class _Layer:
    """The weights of one layer, in the order of use; norms of queries and keys where the family has them."""

    enter: Norm
    qkv: FastLinear
    q_norm: Norm | None
    k_norm: Norm | None
    leave: FastLinear
    middle: Norm
    gate_up: FastLinear
    down: FastLinear


_PRODUCTS = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""The linear layers of a layer of ``transformers`` in the order of use, those of one input together."""


def _products(layer: Any) -> list[list[Any]]:
    return [[reduce(getattr, name.split("."), layer) for name in names] for names in _PRODUCTS]


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of what may be seen (bool) as one that is added to scores."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


class Decoder:
    """``model`` is a Hugging Face causal LM of :data:`FAMILIES`; its weights are copied where they are packed, and
    shared elsewhere. Without ``keep_layers`` every layer of ``model`` is let go as soon as its weights are here.
    ``invariant`` is for models that pass :meth:`check_invariance`. ``blocks`` gives the weights of products in blocks,
    for a CPU; decoding is then invariant. Raises ValueError for sizes that do not divide into blocks.
    """

    def __init__(
        self, model: Any, invariant: bool = False, keep_layers: bool = True, blocks: BlocksOf | None = None
    ) -> None:
        decoder, c = model.base_model, model.config
        weight = model.get_input_embeddings().weight
        self.head_dim: int = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        self.sizes = (c.num_attention_heads, c.num_key_value_heads, c.num_key_value_heads)
        # Norms and residuals: float32 on a CPU, where that costs nothing; the model's own dtype elsewhere.
        self.dtype = torch.float32 if weight.device.type == "cpu" else weight.dtype
        self.invariant = invariant or blocks is not None
        self.in_blocks = blocks is not None
        """Whether the weights of products are in blocks."""
        sizes = (c.hidden_size, c.intermediate_size, self.head_dim, c.num_attention_heads)
        fused = blocks is not None and FusedLayers.can_be(*sizes)
        self.cache_dtype = torch.float64 if self.invariant and not fused else self.dtype
        """Of keys, values and attention."""
        self.layers: list[_Layer] = []
        for i in range(len(decoder.layers)):
            self.layers.append(self._layer(decoder.layers[i], f"model.layers.{i}", blocks))
            if not keep_layers:
                decoder.layers[i] = nn.Identity()
        self.norm = Norm(decoder.norm, self.dtype)
        self.rotary = decoder.rotary_emb
        self._maths = _Maths(gated=_gated_alike) if self.invariant else _Maths()
        self.fused = FusedLayers(self._described()) if fused else None
        """All layers at once, where the kernels are there."""

    def _described(self) -> BlockLayers:
        layers = []
        for layer in self.layers:
            products = (layer.qkv, layer.leave, layer.gate_up, layer.down)
            qkv, leave, gate_up, down = (product for product in products if isinstance(product, BlockLinear))
            q_norm, k_norm = (None if norm is None else norm.weight for norm in (layer.q_norm, layer.k_norm))
            enter, middle = layer.enter.weight, layer.middle.weight
            layers.append(BlockLayer(enter, qkv, q_norm, k_norm, leave, middle, gate_up, down))
        first = self.layers[0].q_norm
        rates, scaling = self.rotary.inv_freq, float(self.rotary.attention_scaling)
        qk_eps = 0.0 if first is None else first.eps
        heads, kv_heads, _ = self.sizes
        return BlockLayers(
            layers, self.norm.weight, heads, kv_heads, self.head_dim, rates, self.norm.eps, qk_eps, scaling
        )

    @staticmethod
    def check_invariance(model: Any) -> None:
        """Raise ValueError if ``model`` is not known to decode invariantly: elsewhere than on a CPU, in another
        precision than bfloat16, or where the processor's products depend on the number of rows all the same."""
        weight = model.get_input_embeddings().weight
        if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
            raise ValueError(
                f"Invariant decoding is there for bfloat16 on a CPU, not for {weight.dtype} on {weight.device.type}."
            )
        first = model.base_model.layers[0]
        for modules in _products(first):
            if not is_invariant(PackedLinear(torch.cat([m.weight for m in modules]), None, True)):
                raise ValueError(
                    "On this processor a product depends on the number of rows, so decoding is not invariant."
                )

    @torch.inference_mode()
    def compile(self) -> bool:
        """Fuse what lies between the products with ``torch.compile``, for any number of rows and nodes; the first calls
        take seconds. Whether it worked: where nothing can be compiled, a RuntimeWarning says why and all goes on as
        before. Results differ by rounding."""
        maths = _Maths(
            torch.compile(_added, dynamic=True),
            torch.compile(_turned, dynamic=True),
            torch.compile(gated, dynamic=True),
        )
        try:
            self._try(maths)
        except Exception as error:  # whatever the compiler's tools raise
            lines = str(error).strip().splitlines() or [type(error).__name__]
            warnings.warn(f"Nothing is compiled here, decoding goes on without: {lines[0]}", RuntimeWarning, 3)
            return False
        self._maths = maths
        return True

    def _try(self, maths: _Maths) -> None:
        """Run all functions once, in the shapes of two nodes."""
        norm, layer = self.norm, self.layers[0]
        x = self.norm.weight.new_zeros(1, 2, len(norm.weight))
        maths.added(x, x.to(layer.down.dtype), norm.weight, norm.eps, norm.scaled, norm.least)
        heads = x.new_zeros(1, 2, sum(self.sizes), self.head_dim)
        maths.turned(heads[:, :, : sum(self.sizes[:2])], heads[:, :, :1], heads[:, :, :1])
        maths.gated(x.new_zeros(1, 2, layer.gate_up.shape[0], dtype=layer.gate_up.dtype))

    @staticmethod
    def fits(model: Any) -> bool:
        """Whether ``model`` is of a family that is read here, with weights in one floating-point dtype."""
        c = model.config
        rope = getattr(c, "rope_parameters", None) or {}
        return (
            c.model_type in FAMILIES
            and c.hidden_act == "silu"
            and rope.get("rope_type", "default") in _ROPES
            and len({p.dtype for p in model.parameters()}) == 1
        )

    def _layer(self, layer: Any, name: str, blocks: BlocksOf | None) -> _Layer:
        attention = layer.self_attn
        qkv, leave, gate_up, down = (
            self._joined(modules, [f"{name}.{part}.weight" for part in parts], blocks)
            for modules, parts in zip(_products(layer), _PRODUCTS, strict=True)
        )
        q_norm, k_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        return _Layer(
            Norm(layer.input_layernorm, self.dtype),
            qkv,
            None if q_norm is None else Norm(q_norm, self.dtype),
            None if k_norm is None else Norm(k_norm, self.dtype),
            leave,
            Norm(layer.post_attention_layernorm, self.dtype),
            gate_up,
            down,
        )

    def _joined(self, modules: list[Any], names: list[str], blocks: BlocksOf | None) -> FastLinear:
        """Linear layers of one input as one, outputs in order."""
        weights, biases = [module.weight.detach() for module in modules], [module.bias for module in modules]
        bias = None if biases[0] is None else torch.cat([bias.detach() for bias in biases])
        if blocks is not None:
            return BlockLinear(Blocks.join(list(map(blocks, names, weights))), bias)
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        joined = PackedLinear(weight, bias, self.invariant)
        if not joined.packed:  # the modules then read their weights where they now are
            for module, part in zip(modules, weight.split([len(w) for w in weights]), strict=True):
                module.weight.data = part
        return joined

    def __call__(
        self,
        x: Tensor,
        index: Tensor,
        mask: Tensor | None,
        cache: Attends,
        taps: tuple[int, ...] = (-1,),
    ) -> tuple[Tensor, Tensor]:
        """``x [B, M, D]`` embeddings at positions ``index [B, M]``; ``mask [B, 1, M, S]``, in ``cache_dtype``, is added
        to the attention scores over the first S entries of ``cache``, to which the M nodes are written. None: what
        ``cache`` makes of it (:meth:`speech_mtp.nn.kv_cache.KVCache.attend`, :class:`speech_mtp.nn.row_pool.Chains`).

        Returns the states of ``taps`` ``[B, M, taps, D]`` (the number of layers: after the last, before the final norm)
        and those after the final norm ``[B, M, D]``.
        """
        x = x.to(self.dtype)
        cos, sin = self._angles(x, index)
        half = self.head_dim // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)[:, :, None]
        cos = cos[:, :, None]
        found: dict[int, Tensor] = {}
        normed = self.layers[0].enter(x)
        for i, (layer, leave) in enumerate(zip(self.layers, self._leaves(), strict=True)):
            if i in taps:
                found[i] = x
            x, normed = self._add(x, self._attend(layer, i, normed, cos, sin, mask, cache), layer.middle)
            x, normed = self._add(x, layer.down(self._maths.gated(layer.gate_up(normed))), leave)
        found[-1] = normed
        found[len(self.layers)] = x
        return torch.stack([found[tap] for tap in taps], 2), normed

    def nodes(
        self,
        x: Tensor,
        index: Tensor,
        ancestors: Tensor | None,
        cache: KVCache | Chains,
        taps: tuple[int, ...] = (-1,),
        seen: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The same of nodes that are written behind what is in ``cache``, each seeing that (its first ``seen`` entries)
        and its ``ancestors [B, M, M]``; None: chains, behind an empty cache or in rows of a pool. In one call of the
        compiled kernels where they are there."""
        if self.fused is not None:
            return self.fused(x, index, ancestors, cache, taps)
        mask = None
        if ancestors is not None and (index.numel() > 1 or x.device.type != "cpu"):  # one alone there sees all
            assert isinstance(cache, KVCache), "chains see their own rows"
            mask = additive(cache.mask(ancestors, seen), self.cache_dtype)
        return self(x, index, mask, cache, taps)

    def _angles(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines ``[B, M, d]`` of the positions ``index [B, M]``."""
        if self.cache_dtype != torch.float64:
            return self.rotary(x, index)
        angles = (index[..., None].float() * self.rotary.inv_freq.float()).double()
        angles = torch.cat([angles, angles], -1)
        return angles.cos() * self.rotary.attention_scaling, angles.sin() * self.rotary.attention_scaling

    def _leaves(self) -> list[Norm]:
        """The norm that comes after each layer."""
        return [*(layer.enter for layer in self.layers[1:]), self.norm]

    def _add(self, x: Tensor, y: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
        return self._maths.added(x, y, norm.weight, norm.eps, norm.scaled, norm.least)

    def _attend(
        self, layer: _Layer, i: int, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Attends
    ) -> Tensor:
        joined = layer.qkv(x).to(self.cache_dtype).unflatten(-1, (-1, self.head_dim))
        q_heads, k_heads, _ = self.sizes
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k, v = joined.split(self.sizes, 2)
            turned = torch.cat([layer.q_norm(q), layer.k_norm(k)], 2)
        else:
            turned, v = joined[:, :, : q_heads + k_heads], joined[:, :, q_heads + k_heads :]
        turned = self._maths.turned(turned, cos, sin).transpose(1, 2)
        y = cache.attend(i, turned[:, :q_heads], turned[:, q_heads:], v.transpose(1, 2), mask)
        return layer.leave(y.transpose(1, 2).flatten(2))
