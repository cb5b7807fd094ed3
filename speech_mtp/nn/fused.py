"""All layers of a decoder in one call of the compiled kernels: weights in blocks, everything else in float32.

What :class:`speech_mtp.lm.decoder.Decoder`, :class:`speech_mtp.lm.talker.Talker` and EAGLE-3's layer do operation by
operation, ``smtp_forward`` of ``native/kernels.c`` does with one team of threads. A node's numbers do not depend on
which others it is computed with: products are invariant (:mod:`speech_mtp.nn.blocks`), and attention adds up the
entries that a node sees in their order, however they lie in the cache.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speech_mtp import native
from speech_mtp.nn.blocks import BLOCK, BlockLinear, is_native
from speech_mtp.nn.kv_cache import KVCache
from speech_mtp.nn.row_pool import Chains

_WIDEST = 256  # numbers of a head


@dataclass(frozen=True)
class BlockLayer:
    """Weights of a layer in the order of use: norms in float32 (those of queries and keys may be missing), products.

    With a norm ``side`` the layer is twice as wide where it begins: ``qkv`` reads vectors of their own, normed by it,
    and after them the normed stream."""

    enter: Tensor
    qkv: BlockLinear
    q_norm: Tensor | None
    k_norm: Tensor | None
    leave: BlockLinear
    middle: Tensor
    gate_up: BlockLinear
    down: BlockLinear
    side: Tensor | None = None

    def describe(self) -> native.Layer:
        """What the kernels are told of it."""
        norms = (self.side, self.enter, self.middle, self.q_norm, self.k_norm)
        products = (self.qkv, self.leave, self.gate_up, self.down)
        return native.Layer(
            *(None if norm is None else norm.data_ptr() for norm in norms), *(product.described for product in products)
        )


@dataclass(frozen=True)
class BlockLayers:
    """The layers, the final ``norm`` with its ``eps``, ``qk_eps`` of the norms of queries and keys, ``heads`` and
    ``kv_heads`` of ``head_dim``, ``rates [head_dim / 2]`` of the rotary angles and what their cosines and sines are
    scaled by."""

    layers: Sequence[BlockLayer]
    norm: Tensor
    heads: int
    kv_heads: int
    head_dim: int
    rates: Tensor
    eps: float
    qk_eps: float = 0.0
    scaling: float = 1.0


@dataclass(frozen=True)
class _Entries:
    """``keys, values [layers, R, H, S, d]``; of its ``rows [B]`` (None: all in order) ``lengths [B]`` are valid."""

    keys: Tensor
    values: Tensor
    lengths: Tensor
    rows: Tensor | None = None


class FusedLayers:
    """``layers`` on a CPU, over a cache in float32; where :meth:`can_be`."""

    @staticmethod
    def can_be(dim: int, hidden: int, head_dim: int, heads: int) -> bool:
        """Whether the kernels are there, and cut and add rows of these widths."""
        whole = all(width % BLOCK == 0 for width in (dim, hidden, heads * head_dim))
        return whole and head_dim % 8 == 0 and head_dim <= _WIDEST and is_native()

    def __init__(self, layers: BlockLayers) -> None:
        self.layers = layers
        self._angles = _Angles(layers.rates, layers.scaling)
        self._described = self._describe()

    def _describe(self) -> ctypes.Array[native.Layer]:
        layers = self.layers.layers
        return (native.Layer * len(layers))(*(layer.describe() for layer in layers))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_described"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._described = self._describe()

    def __call__(
        self,
        x: Tensor,
        index: Tensor,
        ancestors: Tensor | None,
        cache: KVCache | Chains,
        taps: tuple[int, ...],
        side: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``x [B, M, D]`` embeddings of nodes at positions ``index [B, M]``, written behind the valid entries of
        ``cache``, which has room for them. A node sees those entries and its ``ancestors [B, M, M]``, itself and none
        that comes after it among them; None: the nodes up to itself. ``ancestors [B, M, K + M]``: K entries that an
        earlier call has written there stay, and the nodes come after them. ``side [B, M, D]`` is for layers that read
        vectors of their own.

        Returns the states of ``taps`` ``[B, M, taps, D]`` (k: what enters layer k; the number of layers: what leaves
        the last; -1: after the final norm) and those after the final norm ``[B, M, D]``.
        """
        if isinstance(cache, KVCache):
            return self._over(_Entries(cache.keys, cache.values, cache.lengths), x, index, ancestors, taps, side)
        pieces = zip(cache.rows, cache.starts, x.split(cache.counts, 1), index.split(cache.counts, 1), strict=True)
        found = [
            self._over(
                _Entries(cache.keys, cache.values, torch.tensor([start]), torch.tensor([row])), part, at, None, taps
            )
            for row, start, part, at in pieces
        ]
        hidden, final = zip(*found, strict=True)
        return torch.cat(hidden, 1), torch.cat(final, 1)

    def _over(
        self,
        cache: _Entries,
        x: Tensor,
        index: Tensor,
        ancestors: Tensor | None,
        taps: tuple[int, ...],
        side: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        known, (rows, nodes, dim) = self.layers, x.shape
        if x.device.type != "cpu":
            raise ValueError(f"Weights in blocks are for a CPU, not for inputs on {x.device}; load the model anew.")
        if not all(-1 <= tap <= len(known.layers) for tap in taps):
            raise ValueError(f"The taps are {taps}; they must be from -1 to {len(known.layers)}.")
        seen = (rows, nodes, nodes) if ancestors is None else tuple(ancestors.shape)
        behind = seen[-1] - nodes
        if tuple(index.shape) != (rows, nodes) or seen != (rows, nodes, behind + nodes) or behind < 0:
            raise ValueError(f"{rows} rows of {nodes} nodes have positions {tuple(index.shape)} and see {seen}.")
        if any((layer.side is None) != (side is None) for layer in known.layers) or (
            side is not None and side.shape != x.shape
        ):
            raise ValueError("Vectors at the side are for layers that read them, as many as there are nodes.")
        x = x.to(torch.float32, copy=True).contiguous()
        final, tapped = torch.empty_like(x), torch.empty(rows, nodes, len(taps), dim)
        if not x.numel():
            return tapped, final
        size, longest = cache.keys.shape[3], int(cache.lengths.max()) + behind + nodes
        if not all(kept.is_contiguous() and kept.dtype == torch.float32 for kept in (cache.keys, cache.values)):
            raise ValueError("The cache must lie in one piece, in float32.")
        if longest > size or int(index.max()) >= max(longest, size):
            raise ValueError(f"The cache has room for {size} entries, not for {longest}.")
        cos, sin = self._angles(size)
        asked, library = torch.tensor(taps), native.load()
        assert library is not None
        held = (
            *(known.norm, cos, sin, index.contiguous(), cache.lengths.contiguous(), cache.rows),
            None if ancestors is None else ancestors.contiguous(),
            *(cache.keys, cache.values, None if side is None else side.to(torch.float32).contiguous()),
            *(x, final, asked, tapped),
        )
        forward = native.Forward(
            *(len(known.layers), dim, known.heads, known.kv_heads, known.head_dim, known.layers[0].down.shape[1]),
            *(rows, nodes, behind, size, -(-longest // 8) * 8, len(taps), torch.get_num_threads(), cache.keys.shape[1]),
            *(known.eps, known.qk_eps, known.head_dim**-0.5),
            ctypes.addressof(self._described),
            *(None if tensor is None else tensor.data_ptr() for tensor in held),
        )
        if library.smtp_forward(ctypes.byref(forward)):
            raise MemoryError(f"There is no memory for {rows * nodes} nodes.")
        for place, tap in enumerate(taps):
            if tap == -1:
                tapped[:, :, place] = final
        return tapped, final


class _Angles:
    """Cosines and sines of positions ``[P, head_dim / 2]``, made once for as many as are needed."""

    def __init__(self, rates: Tensor, scaling: float) -> None:
        self._rates, self._scaling = rates.float(), scaling
        self._made = torch.empty(2, 0, len(rates))

    def __call__(self, positions: int) -> tuple[Tensor, Tensor]:
        """Those of the first ``positions`` positions, or of more."""
        made = self._made
        if made.shape[1] < positions:
            # As the models compute them: angles are products in float32.
            angles = (torch.arange(positions)[:, None].float() * self._rates).double()
            made = self._made = (torch.stack([angles.cos(), angles.sin()]) * self._scaling).float().contiguous()
        return made[0], made[1]
