"""The output layer ``depth`` in one call of the compiled kernels: all channels of a group, draws included.

Channel by channel in torch it takes some thirty small operations each, which cost more than the products. A row's
tokens do not depend on the other rows.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from speech_mtp import native
from speech_mtp.lm.output import Depth
from speech_mtp.nn.blocks import BlockLinear, threads_for
from speech_mtp.types import RowSampling


@dataclass(frozen=True)
class GroupDraws:
    """How N rows draw a group of tokens.

    Of the first channel the tokens ``allowed [N, V_0]`` bool. In the channels ``guarded``, the logit of the token
    ``stuck [N]`` is lowered by ``lowered [N]``. Channel c is drawn by ``settings[kinds[c]]``, with the noise of
    ``position [N]``, ``channel`` and ``purpose`` (:mod:`speech_mtp.decoding.sampling`).
    """

    allowed: Tensor
    stuck: Tensor
    lowered: Tensor
    guarded: Sequence[bool]
    settings: Sequence[RowSampling]
    kinds: Sequence[int]
    position: Tensor
    purpose: int


@dataclass(frozen=True)
class _Channel:
    """A channel as the kernels read it; ``project`` and ``table`` are None in the last."""

    norm: Tensor
    up: BlockLinear
    down: BlockLinear
    project: BlockLinear | None
    table: Tensor | None

    def describe(self, kind: int, guarded: bool) -> native.Channel:
        project = native.Linear() if self.project is None else self.project.described
        table = None if self.table is None else self.table.data_ptr()
        return native.Channel(
            *(self.up.described, self.down.described, project, self.norm.data_ptr(), table), *(kind, guarded)
        )


class FusedDepth:
    """``channels`` on a CPU; ``eps`` is that of their norms."""

    def __init__(self, channels: Sequence[_Channel], eps: float) -> None:
        self._channels, self._eps = channels, eps
        self._largest = max(one.down.shape[0] for one in channels)

    @classmethod
    def of(cls, layer: nn.Module) -> Self | None:
        """``layer``; None unless its channels see those before them and all its weights are in blocks of the compiled
        kernels."""
        if not isinstance(layer, Depth) or not layer.tables:
            return None
        products: list[list[Any]] = [[one.forward for one in each] for each in (layer.up, layer.down, layer.project)]
        if not all(isinstance(one, BlockLinear) and one.compiled for each in products for one in each):
            return None
        up, down, project = products
        norms, tables = ([one.detach().float() for one in each.parameters()] for each in (layer.norms, layer.tables))
        channels = zip(norms, up, down, [*project, None], [*tables, None], strict=True)
        return cls([_Channel(*one) for one in channels], torch.finfo(torch.float32).eps)

    def __call__(self, hidden: Tensor, draws: GroupDraws) -> Tensor:
        """``hidden [N, D]`` -> tokens ``[N, C]``. Raises ValueError for states on another device."""
        if hidden.device.type != "cpu":
            raise ValueError(f"Weights in blocks are for a CPU, not for states on {hidden.device}; load it anew.")
        rows, channels = len(hidden), len(self._channels)
        x, tokens = hidden.to(torch.float32, copy=True).contiguous(), torch.zeros(rows, channels, dtype=torch.long)
        if not rows:
            return tokens
        columns = [
            torch.cat([getattr(one, name) for one in draws.settings]).to(dtype)
            for name, dtype in (("temperature", torch.float32), ("top_k", torch.long), ("top_p", torch.float32))
        ]
        held = (
            *(x, draws.allowed.contiguous(), draws.stuck.long().contiguous(), draws.lowered.float().contiguous()),
            *columns,
            *(draws.settings[0].seed.contiguous(), draws.position.long().contiguous(), tokens),
        )
        about = zip(self._channels, draws.kinds, draws.guarded, strict=True)
        described = (native.Channel * channels)(*(one.describe(kind, guarded) for one, kind, guarded in about))
        (width, dim), narrow = self._channels[0].up.shape, self._channels[0].project
        assert narrow is not None
        depth = native.Depth(
            *(channels, rows, dim, width, narrow.shape[1]),
            *(threads_for(rows * width * max(dim, self._largest)), draws.purpose),
            self._eps,
            ctypes.addressof(described),
            *(tensor.data_ptr() for tensor in held),
        )
        library = native.load()
        assert library is not None
        if library.smtp_depth(ctypes.byref(depth)):
            raise MemoryError(f"There is no memory for {rows} groups.")
        return tokens
