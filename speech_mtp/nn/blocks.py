"""Linear maps with weights in blocks of 4 or 8 bits, and inputs rounded to 8 bits: for decoding on a CPU.

A row of a weight matrix is cut into blocks of 32 numbers with a scale each (GGUF's Q4_1 and Q8_0):

* ``q4``: ``scale * q + least``, q in 0..15; 5 bits a weight;
* ``q8``: ``scale * q``, q in -127..127; 8.5 bits a weight.

An input row is cut alike, each block rounded to ``q * a`` with q in -127..127 and ``a = max |x| / 127``. Products
within a block are sums of whole numbers, which are exact; those of blocks are added first to last. So a row gives the
same numbers alone and among others, on one thread and on many, in the compiled kernels (:mod:`speech_mtp.native`) and
in torch, which takes their place where they cannot be had: decoding with these is invariant by construction.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from speech_mtp import native
from speech_mtp.nn.pages import settled

BLOCK = 32
KINDS = ("q4", "q8")
_TILE = 16
_BYTES = {"q4": 320, "q8": 544}
_ALONE = 1 << 21  # products of a call that more threads do not make faster
_CHUNK = 1 << 22  # whole-number products that torch holds at once
_NEAR = 1 << 16  # weights that stay in a processor's cache while scales are tried on them
_TRIED = tuple(127 - 0.6 * tried for tried in range(32))


@dataclass(frozen=True)
class Blocks:
    """A matrix ``[N, K]`` as the compiled kernels read it (``kernels.c`` draws it): ``tiles [N / 16, K / 32, B]``
    bytes, B being 320 in ``q4`` and 544 in ``q8``. ``rows`` is N; the last tile is filled up with zeros."""

    tiles: Tensor
    rows: int

    def __post_init__(self) -> None:
        tiles = -(-self.rows // _TILE)
        if self.tiles.ndim != 3 or self.tiles.shape[0] != tiles or self.tiles.shape[2] not in _BYTES.values():
            raise ValueError(f"Tiles of {tuple(self.tiles.shape)} bytes are not those of {self.rows} rows in blocks.")

    @property
    def kind(self) -> str:
        return "q4" if self.tiles.shape[2] == _BYTES["q4"] else "q8"

    @property
    def shape(self) -> tuple[int, int]:
        return self.rows, self.tiles.shape[1] * BLOCK

    @classmethod
    def make(cls, quants: Tensor, scale: Tensor, least: Tensor | None = None) -> Self:
        """Of ``quants [N, K]`` int8, ``scale [N, K / 32]`` and, in ``q4`` alone, ``least`` alike, in half precision."""
        pad = (0, 0, 0, -len(quants) % _TILE)
        whole = F.pad(quants, pad).view(-1, _TILE, quants.shape[1] // BLOCK, BLOCK // 4, 4).permute(0, 2, 3, 1, 4)
        if least is not None:
            low, high = whole.view(torch.uint8).chunk(2, 2)
            whole = low | high << 4
        parts = [whole.contiguous().view(torch.uint8).flatten(2)]
        for numbers in (scale, least):
            if numbers is not None:
                each = F.pad(numbers, pad).view(-1, _TILE, numbers.shape[1]).transpose(1, 2)
                parts.append(each.contiguous().view(torch.uint8))
        return cls(torch.cat(parts, 2), len(quants))

    @classmethod
    def of(cls, weight: Tensor, kind: str, careful: bool = False) -> Self:
        """``weight [N, K]`` rounded. q4: from the least number of a block to the greatest in 15 steps; q8: from minus
        the largest to the largest in 254, or, if ``careful``, in as many as lose least, which takes a while. Raises
        ValueError for another kind, and where K does not divide into blocks."""
        if kind not in KINDS:
            raise ValueError(f"Weights cannot be kept as {kind!r}; use {' or '.join(KINDS)}.")
        if weight.shape[1] % BLOCK:
            raise ValueError(
                f"Rows of {weight.shape[1]} numbers do not divide into blocks of {BLOCK}; use float32 or bfloat16."
            )
        each = weight.detach().float().unflatten(1, (-1, BLOCK))
        if kind == "q8":
            if careful:
                scale = torch.cat([_scales(rows) for rows in each.split(max(1, _NEAR // weight.shape[1]))])
            else:
                scale = (each.abs().amax(-1) / 127).half()
            return cls.make(_steps(each, scale, -127, 127).flatten(1), scale)
        least = each.amin(-1).half()
        scale = ((each.amax(-1) - least.float()) / 15).half()
        return cls.make(_steps(each - least.float()[..., None], scale, 0, 15).flatten(1), scale, least)

    @classmethod
    def join(cls, parts: Sequence[Blocks]) -> Self:
        """The rows of all parts, which are of one width; where their kinds differ, all become ``q8``."""
        if len({part.kind for part in parts}) > 1:
            return cls.join([part if part.kind == "q8" else cls.of(part.floats(), "q8") for part in parts])
        if all(part.rows % _TILE == 0 for part in parts[:-1]):
            return cls(torch.cat([part.tiles for part in parts]), sum(part.rows for part in parts))
        leasts = [part.least for part in parts if part.least is not None]
        return cls.make(
            torch.cat([part.quants for part in parts]),
            torch.cat([part.scale for part in parts]),
            torch.cat(leasts) if leasts else None,
        )

    @property
    def quants(self) -> Tensor:
        """``[N, K]`` int8."""
        count = 4 if self.kind == "q4" else 8
        whole = self.tiles[:, :, : 64 * count].unflatten(2, (count, _TILE, 4))
        if self.kind == "q4":
            whole = torch.cat([whole & 15, whole >> 4], 2)
        return whole.permute(0, 3, 1, 2, 4).flatten(2).flatten(0, 1)[: self.rows].contiguous().view(torch.int8)

    @property
    def scale(self) -> Tensor:
        """``[N, K / 32]`` in half precision."""
        return self._halves(256 if self.kind == "q4" else 512)

    @property
    def least(self) -> Tensor | None:
        """``[N, K / 32]`` in half precision; None in ``q8``."""
        return self._halves(288) if self.kind == "q4" else None

    def _halves(self, at: int) -> Tensor:
        numbers = self.tiles[:, :, at : at + 2 * _TILE].contiguous().view(torch.float16)
        return numbers.transpose(1, 2).flatten(0, 1)[: self.rows].contiguous()

    def floats(self) -> Tensor:
        """``[N, K]`` in float32."""
        each = self.quants.float().unflatten(1, (-1, BLOCK)) * self.scale.float()[..., None]
        return (each if self.least is None else each + self.least.float()[..., None]).flatten(1)


def _scales(each: Tensor) -> Tensor:
    """Scales of blocks ``[N, K / 32, 32]`` in q8, in half precision ``[N, K / 32]``: the largest number over one of
    :data:`_TRIED`, whichever leaves the least squared error. Weights that had been rounded to a few bits lie on the
    steps of some such scale, or nearly; others gain less."""
    largest = each.abs().amax(-1)
    best, least = (largest / 127).half(), torch.full_like(largest, torch.inf)
    for steps in _TRIED:
        scale = (largest / steps).half()
        rounded = _steps(each, scale, -127, 127).float() * scale.float()[..., None]
        error = (rounded - each).square_().sum(-1)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best


def _steps(each: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    width = scale.float()[..., None]
    return torch.where(width > 0, each / width, 0).round().clamp(low, high).to(torch.int8)


@dataclass(frozen=True)
class RoundedRows:
    """Rows ``[M, K]`` as whole numbers ``quants [M, K / 32, 32]`` (in float32), ``scale`` and ``sum [M, K / 32]`` of
    their blocks; a sum is that of the rounded numbers."""

    quants: Tensor
    scale: Tensor
    sum: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Self:
        each = x.float().unflatten(1, (-1, BLOCK))
        largest = each.abs().amax(-1)
        inverse = torch.where(largest > 1e-30, torch.full_like(largest, 127).div(largest), 0)  # 127 / x: rounded twice
        quants = (each * inverse[..., None]).round()
        scale = largest / 127
        return cls(quants, scale, scale * quants.sum(-1))


class BlockLinear:
    """``x [..., K]`` -> ``x W^T + b [..., N]`` in float32; no gradients. It stands where a
    :class:`speech_mtp.nn.packed.PackedLinear` does."""

    dtype = torch.float32
    packed = True
    invariant = True

    def __init__(self, blocks: Blocks, bias: Tensor | None = None) -> None:
        self.shape, self.kind = blocks.shape, blocks.kind
        self.bias = None if bias is None else bias.detach().float().contiguous()
        compiled = is_native()
        self.tiles = settled(blocks.tiles) if compiled else blocks.tiles.contiguous()
        self._by_torch = None if compiled else _TorchProduct(blocks)
        self.described = _described(self)
        """What the compiled kernels are told of it; good as long as this object lives."""

    @property
    def compiled(self) -> bool:
        """Whether the compiled kernels multiply, and not torch."""
        return self._by_torch is None

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self).items() if name != "described"}
        return {**kept, "tiles": self.tiles.clone()}  # by itself: it lies in a chunk with others

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.described = _described(self)

    def __call__(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.shape[1]:
            raise ValueError(f"The inputs have {x.shape[-1]} numbers, the weights {self.shape[1]} a row.")
        if x.device.type != "cpu":
            raise ValueError(f"Weights in blocks are for a CPU, not for inputs on {x.device}; load the model anew.")
        rows = x.reshape(-1, x.shape[-1]).float().contiguous()
        if self._by_torch is None:
            out = self._compiled(rows)
        else:
            out = self._by_torch(rows) if self.bias is None else self._by_torch(rows) + self.bias
        return out.view(*x.shape[:-1], self.shape[0])

    def _compiled(self, rows: Tensor) -> Tensor:
        library = native.load()
        assert library is not None
        out = torch.empty(len(rows), self.shape[0])
        if len(rows) and library.smtp_linear(
            ctypes.byref(self.described),
            ctypes.c_void_p(rows.data_ptr()),
            ctypes.c_int64(len(rows)),
            ctypes.c_void_p(out.data_ptr()),
            ctypes.c_int64(threads_for(len(rows) * self.shape[0] * self.shape[1])),
        ):
            raise MemoryError(f"There is no memory for {len(rows)} rows of {self.shape[1]} numbers.")
        return out


def threads_for(products: int) -> int:
    """How many of torch's threads share so many products of a call."""
    return torch.get_num_threads() if products > _ALONE else 1


def _described(linear: BlockLinear) -> native.Linear:
    bias = None if linear.bias is None else linear.bias.data_ptr()
    return native.Linear(int(linear.kind.removeprefix("q")), *linear.shape, linear.tiles.data_ptr(), bias)


class _TorchProduct:
    """``[M, K]`` times a matrix of blocks, ``[M, N]``, by torch: the very numbers of the compiled kernels."""

    def __init__(self, blocks: Blocks) -> None:
        self._quants = blocks.quants.unflatten(1, (-1, BLOCK))
        self._scale, self._least = blocks.scale.float(), None if blocks.least is None else blocks.least.float()

    @torch.autocast("cpu", enabled=False)  # whole numbers are exact in float32, not in what autocast would take
    def __call__(self, rows: Tensor) -> Tensor:
        at_once = max(1, _CHUNK // len(self._quants))
        pieces = [self._few(piece) for piece in rows.split(at_once)]
        return torch.cat(pieces) if pieces else rows.new_zeros(0, len(self._quants))

    def _few(self, rows: Tensor) -> Tensor:
        x = RoundedRows.of(rows)
        out = torch.zeros(len(rows), len(self._quants))
        for b in range(self._quants.shape[1]):  # sums below 2^24 are exact in float32, in any order
            whole = x.quants[:, b] @ self._quants[:, b].float().T
            out = out + whole * (self._scale[:, b] * x.scale[:, b, None])
            if self._least is not None:
                out = out + self._least[:, b] * x.sum[:, b, None]
        return out


def product(rows: Tensor, blocks: Blocks) -> Tensor:
    """``rows [M, K]`` times a matrix of blocks, ``[M, N]``, by torch."""
    return _TorchProduct(blocks)(rows)


@cache
def is_native() -> bool:
    """Whether the compiled kernels are there and give what torch gives; tried once on small products. Kernels that give
    something else are not used, and a RuntimeWarning says so."""
    if native.load() is None:
        return False
    if all(_agrees(kind, rows) for kind in KINDS for rows in (1, 11)):
        return True
    warnings.warn("The fast kernels give wrong numbers on this processor; torch computes instead.", RuntimeWarning, 2)
    return False


def _agrees(kind: str, rows: int) -> bool:
    generator = torch.Generator().manual_seed(rows)
    blocks = Blocks.of(torch.randn(40, 3 * BLOCK, generator=generator), kind)
    x, linear = torch.randn(rows, 3 * BLOCK, generator=generator), BlockLinear.__new__(BlockLinear)
    x[rows // 2, 40] = torch.nan  # a block of a row is spoilt, and with it the row
    linear.shape, linear.kind, linear.bias, linear.tiles = blocks.shape, kind, None, blocks.tiles
    linear.described = _described(linear)
    return torch.equal(linear._compiled(x).nan_to_num(7.5), product(x, blocks).nan_to_num(7.5))
