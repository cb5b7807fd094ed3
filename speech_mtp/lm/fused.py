"""All layers of a decoder in one call of the compiled kernels: weights in blocks, everything else in float32.

What :class:`speech_mtp.lm.decoder.Decoder` does layer by layer, ``smtp_forward`` of ``native/kernels.c`` does with one
team of threads. A node's numbers do not depend on which others it is computed with: products are invariant
(:mod:`speech_mtp.nn.blocks`), and attention adds up the entries that a node sees in their order, however they lie in
the cache.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from speech_mtp import native
from speech_mtp.nn.blocks import BLOCK, BlockLinear
from speech_mtp.nn.kv_cache import KVCache

if TYPE_CHECKING:
    from speech_mtp.lm.decoder import Decoder

_WIDEST = 256  # numbers of a head


class FusedLayers:
    """The layers of ``decoder``, whose products are :class:`BlockLinear`, on a CPU; for sizes that :meth:`fits`."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._layers = (native.Layer * len(decoder.layers))(*map(self._describe, decoder.layers))
        self._angles = _Angles(decoder.rotary, decoder.head_dim)

    @staticmethod
    def fits(dim: int, hidden: int, head_dim: int) -> bool:
        """Whether rows of these widths are cut and added as the kernels do it."""
        return dim % BLOCK == 0 and hidden % BLOCK == 0 and head_dim % 8 == 0 and head_dim <= _WIDEST

    def _describe(self, layer: Any) -> native.Layer:
        norms = (layer.enter, layer.middle, layer.q_norm, layer.k_norm)
        products = (layer.qkv, layer.leave, layer.gate_up, layer.down)
        assert all(isinstance(product, BlockLinear) for product in products)
        return native.Layer(
            *(None if norm is None else norm.weight.data_ptr() for norm in norms),
            *(product.describe() for product in products),
        )

    def __call__(
        self, x: Tensor, index: Tensor, ancestors: Tensor | None, cache: KVCache, taps: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """``x [B, M, D]`` embeddings of nodes at positions ``index [B, M]``, written behind the valid entries of
        ``cache``, which has room for them. A node sees those entries and its ``ancestors [B, M, M]``, itself among
        them; None: the nodes up to itself.

        Returns what :meth:`Decoder.__call__` does: states of ``taps`` ``[B, M, taps, D]``, and of the top.
        """
        decoder, (rows, nodes, dim) = self._decoder, x.shape
        x = x.to(torch.float32, copy=True).contiguous()
        final, tapped = torch.empty_like(x), torch.empty(rows, nodes, len(taps), dim)
        if not x.numel():
            return tapped, final
        cos, sin = self._angles(cache.size)
        inner = torch.tensor(taps)
        held = (
            *(index.contiguous(), cache.lengths.contiguous()),
            None if ancestors is None else ancestors.contiguous(),
            *(cache.keys, cache.values),
        )
        assert cache.keys.is_contiguous()
        assert cache.keys.dtype == torch.float32
        heads, kv_heads, _ = decoder.sizes
        entries = -(-(cache.longest + nodes) // 8) * 8
        first = decoder.layers[0]
        library = native.load()
        assert library is not None
        forward = native.Forward(
            *(len(decoder.layers), dim, heads, kv_heads, decoder.head_dim, first.down.shape[1]),
            *(rows, nodes, cache.size, entries, len(taps), torch.get_num_threads()),
            *(decoder.norm.eps, 0.0 if first.q_norm is None else first.q_norm.eps, decoder.head_dim**-0.5, 0.0),
            ctypes.addressof(self._layers),
            *(t.data_ptr() for t in (decoder.norm.weight, cos, sin)),
            *(None if t is None else t.data_ptr() for t in held),
            *(t.data_ptr() for t in (x, final, inner, tapped)),
        )
        if library.smtp_forward(ctypes.byref(forward)):
            raise MemoryError(f"There is no memory for {rows * nodes} nodes.")
        for place, tap in enumerate(taps):
            if tap == -1:
                tapped[:, :, place] = final
        return tapped, final


class _Angles:
    """Cosines and sines of positions ``[P, head_dim / 2]``, made once in float64 for as many as are needed."""

    def __init__(self, rotary: Any, head_dim: int) -> None:
        self._rates = rotary.inv_freq.double()
        self._scaling = float(rotary.attention_scaling)
        assert len(self._rates) == head_dim // 2, "every number of a head is rotated"
        self._made: tuple[Tensor, Tensor] = (torch.empty(0, len(self._rates)),) * 2

    def __call__(self, positions: int) -> tuple[Tensor, Tensor]:
        """Those of the first ``positions`` positions, or of more."""
        if len(self._made[0]) < positions:
            # As the models compute them: the angles are products in float32.
            angles = (torch.arange(2 * positions)[:, None].float() * self._rates.float()).double()
            self._made = tuple((f(angles) * self._scaling).float().contiguous() for f in (torch.cos, torch.sin))  # type: ignore[assignment]
        return self._made
