"""Linear maps for decoding, where few rows meet large matrices: weights laid out once as the processor reads them."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp.nn.blocks import BLOCK, BlockLinear, Blocks

_ROWS = 8  # what the layout is chosen for: a draft is a handful of nodes
_SMALL, _LARGE = 24, 256  # rows of the blocks of an invariant product
_TILE = 16  # rows of the only block of an invariant product where a few rows are summed otherwise than many
_WIDE = 16_384  # outputs from which on blocks are small, as many rows take too long to try
_TRIED = _WIDE + 4_096  # outputs that stand for more


@cache
def can_pack(dtype: torch.dtype) -> bool:
    """Whether oneDNN takes packed weights of ``dtype`` on this machine; tried once on a small product."""
    if dtype not in (torch.float32, torch.bfloat16) or not torch.backends.mkldnn.is_available():
        return False
    try:
        weight = torch.eye(16, dtype=dtype)
        return bool(torch.equal(_multiply(weight, _pack(weight), None), weight))
    except (RuntimeError, AttributeError):
        return False


def _pack(weight: Tensor) -> Tensor:
    out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS)
    return out


def _multiply(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return out


class PackedLinear:
    """``x [..., I]`` -> ``x W^T + b [..., O]`` in the precision of ``weight [O, I]``; no gradients.

    On a CPU with oneDNN the weights are copied into its blocked layout, which takes little more than half the time of
    ``torch.nn.functional.linear`` for a few rows (``recipes/text_mtp/RESULTS.md``); elsewhere that function runs on the
    weights themselves. The results of both differ by rounding.

    How many rows there are may decide in what order each is summed. ``invariant`` multiplies rows in blocks of the
    sizes that :func:`is_invariant` tries and no others, and a row that comes alone twice, so that what a row gives does
    not depend on how many there are. Where the processor sums those otherwise than each other (AMX does), all blocks
    have 16 rows, the last one filled with zeros: there they cost what a single row costs, and 256 rows six times as
    much as in one piece.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, invariant: bool = False) -> None:
        weight, self.invariant = weight.detach(), invariant
        self.dtype = weight.dtype
        self.shape = (weight.shape[0], weight.shape[1])
        self.bias = None if bias is None else bias.detach()
        self.packed = weight.device.type == "cpu" and can_pack(weight.dtype)
        self._weight = _pack(weight.contiguous()) if self.packed else weight
        self.filled = invariant and not _sizes_agree(*_tried(self.shape), self.dtype, False, torch.get_num_threads())

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if not self.invariant:
            return self._product(x)
        rows = x.reshape(-1, x.shape[-1])
        made = [self._product(self._block(b))[: len(b)] for b in rows.split(self._blocks(len(rows)))]
        return (made[0] if len(made) == 1 else torch.cat(made)).view(*x.shape[:-1], self.shape[0])

    @property
    def largest(self) -> int:
        """Rows of the largest block of an invariant product."""
        return _TILE if self.filled else _LARGE if self.shape[0] <= _WIDE else _SMALL

    def _blocks(self, rows: int) -> list[int]:
        """The sizes of the blocks of ``rows`` rows: the largest, as many of the small size as fit, the rest."""
        large, rest = divmod(rows, self.largest)
        small, rest = divmod(rest, min(self.largest, _SMALL))
        return [self.largest] * large + [_SMALL] * small + ([rest] if rest or not rows else [])

    def _block(self, rows: Tensor) -> Tensor:
        """The rows that are multiplied for a block of ``rows``."""
        if self.filled:
            return F.pad(rows, (0, 0, 0, _TILE - len(rows)))
        return rows.expand(2, -1) if len(rows) == 1 else rows

    def _product(self, x: Tensor) -> Tensor:
        if self.packed:
            return _multiply(x, self._weight, self.bias)
        return F.linear(x, self._weight, self.bias)


FastLinear = PackedLinear | BlockLinear
"""A linear map as decoding has it."""


def is_invariant(linear: PackedLinear) -> bool:
    """Whether products of this size on the CPU, by as many threads as there are, give the very same rows in blocks of
    every size that an invariant product has."""
    return _sizes_agree(*_tried(linear.shape), linear.dtype, linear.filled, torch.get_num_threads())


def _tried(shape: tuple[int, int]) -> tuple[int, int]:
    """The outputs and inputs of the product that is tried in place of one of ``shape``."""
    return min(shape[0], _TRIED), shape[1]


@cache
def _sizes_agree(outputs: int, inputs: int, dtype: torch.dtype, filled: bool, threads: int) -> bool:
    """Tried once for so many ``threads``, on sums that would be zero if they were exact: what is left of them is how
    they were rounded, which another order of summation changes."""
    rng = torch.Generator().manual_seed(0)
    half, odd = divmod(inputs, 2)
    weight = torch.randn(outputs, half, generator=rng, dtype=dtype)
    linear = PackedLinear(F.pad(torch.cat([weight, weight], 1), (0, odd)))
    linear.invariant, linear.filled = True, filled
    x = torch.randn(max(linear.largest, 2 * _SMALL), half, generator=rng, dtype=dtype)
    x = F.pad(torch.cat([x, -x], 1), (0, odd))
    whole = linear(x)
    return all(torch.equal(torch.cat([linear(p) for p in x.split(size)]), whole) for size in range(1, _SMALL + 1))


def fast_linear(weight: Tensor, bias: Tensor | None = None, blocks: str | None = None) -> FastLinear:
    """A linear map by ``weight [O, I]`` as decoding has it: packed, or rounded to ``blocks`` of that kind
    (:data:`speech_mtp.nn.blocks.KINDS`) where its rows divide into them."""
    if blocks is None or weight.shape[1] % BLOCK:
        return PackedLinear(weight, bias)
    return BlockLinear(Blocks.of(weight, blocks), bias)


def pack_linears(module: nn.Module, blocks: str | None = None) -> None:
    """Let all linear layers in ``module`` multiply packed weights, or weights in ``blocks``, from now on: it decodes
    faster and cannot train."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and layer.weight.device.type == "cpu" and can_pack(layer.weight.dtype):
            layer.forward = fast_linear(layer.weight, layer.bias, blocks)  # type: ignore[method-assign, assignment]
