"""Layers of a decoder, run piece by piece with explicit state: the same lines serve offline and streaming.

A :class:`Stage` turns an input ``[1, C, T]`` that arrives in pieces into the output that the whole input
would give, holding back only what later input can still change. Cutting the input elsewhere changes no
result, because each stage keeps exactly the part of its input that the next output needs: causal layers
answer at once, layers with padding on the right lag until ``last`` brings that padding. The cost is that of the
new input alone; nothing is decoded twice. The window caches follow Rybakov et al. 2020 (arXiv 2005.06720).

Inference only. Stages share the weights of the modules they are built from and know nothing of codecs.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Stage(ABC):
    """One layer that keeps its past in a state of its own."""

    @abstractmethod
    def start(self) -> Any:
        """The state before any input."""

    @abstractmethod
    def run(self, state: Any, x: Tensor, last: bool) -> Tensor:
        """The output ``[1, C', T']`` that became final with the piece ``x [1, C, T]`` (T and T' may be 0).

        Updates ``state``; ``last`` says that no input follows.
        """


class Pointwise(Stage):
    """A module without memory, such as an activation."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def start(self) -> None:
        return None

    def run(self, state: None, x: Tensor, last: bool) -> Tensor:
        y: Tensor = self.module(x) if x.shape[-1] else x
        return y


@dataclass
class Kept:
    """Input that future output still needs (None: nothing arrived yet) and whether the left padding is in it."""

    tail: Tensor | None = None
    padded: bool = False


class Convolution(Stage):
    """``nn.Conv1d`` of stride 1 with ``left`` and ``right`` padding; ``mode`` pads the left, zeros the right.

    Reflected padding mirrors samples 1 to ``left``, so that the first output waits for them.
    """

    def __init__(self, conv: nn.Conv1d, left: int, right: int = 0, mode: str = "constant") -> None:
        if mode not in ("constant", "reflect", "replicate"):
            raise ValueError(f"A convolution pads with {mode!r}; streaming knows constant, reflect and replicate.")
        assert conv.stride == (1,), f"stride {conv.stride}"
        self.conv, self.left, self.right, self.mode = conv, left, right, mode
        self.reach = (conv.kernel_size[0] - 1) * conv.dilation[0]

    def start(self) -> Kept:
        return Kept()

    def run(self, state: Kept, x: Tensor, last: bool) -> Tensor:
        x = x if state.tail is None else torch.cat([state.tail, x], -1)
        if not state.padded:
            enough = {"constant": 0, "replicate": 1, "reflect": self.left + 1}[self.mode] if self.left else 0
            if x.shape[-1] < enough and not last:
                state.tail = x
                return x.new_zeros(1, self.conv.out_channels, 0)
            x, state.padded = _pad_left(x, self.left, self.mode), True
        if last:
            x = F.pad(x, (0, self.right))
        count = max(0, x.shape[-1] - self.reach)
        state.tail = x[..., count:].clone()
        if not count:
            return x.new_zeros(1, self.conv.out_channels, 0)
        conv = self.conv
        return F.conv1d(x, conv.weight, conv.bias, dilation=conv.dilation, groups=conv.groups)


def _pad_left(x: Tensor, left: int, mode: str) -> Tensor:
    """Pad the start of ``x``; a reflection longer than ``x`` mirrors zeros past its end, as EnCodec does."""
    if not left:
        return x
    if mode != "reflect":
        return F.pad(x, (left, 0), mode=mode)
    missing = max(0, left + 1 - x.shape[-1])
    padded = F.pad(F.pad(x, (0, missing)), (left, 0), mode="reflect")
    return padded[..., : padded.shape[-1] - missing]


@dataclass
class Overlap:
    """The unfinished end of a transposed convolution, and how many samples its start must still lose."""

    tail: Tensor | None
    drop: int


class Upsampling(Stage):
    """``nn.ConvTranspose1d`` by overlap and add; ``left`` and ``right`` samples are trimmed from its full output."""

    def __init__(self, conv: nn.ConvTranspose1d, left: int, right: int) -> None:
        self.conv, self.left, self.right = conv, left, right
        self.overlap = conv.kernel_size[0] - conv.stride[0]
        assert conv.dilation == (1,), f"dilation {conv.dilation}"
        assert self.overlap >= right, f"overlap {self.overlap}, trim {right}"

    def start(self) -> Overlap:
        return Overlap(None, self.left)

    def run(self, state: Overlap, x: Tensor, last: bool) -> Tensor:
        y = tail = x.new_zeros(1, self.conv.out_channels, 0) if state.tail is None else state.tail
        if x.shape[-1]:
            y = F.conv_transpose1d(x, self.conv.weight, None, self.conv.stride, groups=self.conv.groups)
            y[..., : tail.shape[-1]] += tail
        done = x.shape[-1] * self.conv.stride[0]
        state.tail = y[..., done:].clone()
        y = y[..., : y.shape[-1] - self.right] if last else y[..., :done]
        dropped = min(state.drop, y.shape[-1])
        state.drop -= dropped
        y = y[..., dropped:]
        return y if self.conv.bias is None else y + self.conv.bias[:, None]


class Recurrent(Stage):
    """``nn.LSTM`` over time, added to its input (``skip``); its state is carried from piece to piece."""

    def __init__(self, lstm: nn.LSTM, skip: bool = True) -> None:
        self.lstm, self.skip = lstm, skip

    def start(self) -> list[Any]:
        return [None]

    def run(self, state: list[Any], x: Tensor, last: bool) -> Tensor:
        if not x.shape[-1]:
            return x
        steps = x.permute(2, 0, 1)
        y, state[0] = self.lstm(steps, state[0])
        y = y + steps if self.skip else y
        return y.permute(1, 2, 0)


class Chain(Stage):
    """Stages one after the other; none at all is the identity."""

    def __init__(self, stages: Iterable[Stage]) -> None:
        self.stages = list(stages)

    def start(self) -> list[Any]:
        return [stage.start() for stage in self.stages]

    def run(self, state: list[Any], x: Tensor, last: bool) -> Tensor:
        for stage, own in zip(self.stages, state, strict=True):
            x = stage.run(own, x, last)
        return x


@dataclass
class Branches:
    """States of both branches, and the output of the skip that waits for the other branch."""

    block: list[Any]
    skip: list[Any]
    waiting: list[Tensor] = field(default_factory=list)


class Residual(Stage):
    """``skip(x) + block(x)``, where the block may lag behind the skip."""

    def __init__(self, block: Chain, skip: Chain) -> None:
        self.block, self.skip = block, skip

    def start(self) -> Branches:
        return Branches(self.block.start(), self.skip.start())

    def run(self, state: Branches, x: Tensor, last: bool) -> Tensor:
        y = self.block.run(state.block, x, last)
        early = torch.cat([*state.waiting, self.skip.run(state.skip, x, last)], -1)
        state.waiting = [early[..., y.shape[-1] :].clone()]
        return early[..., : y.shape[-1]] + y


def seanet(layers: Iterable[nn.Module]) -> Chain:
    """Stages of a SEANet decoder (Zeghidour et al. 2021, arXiv 2107.03312) from its list of layers.

    Reads the causal layers of the package ``encodec`` and of ``transformers`` (EnCodec, Mimi) by their parts: a
    residual block has ``block`` and ``shortcut``, a recurrent layer ``lstm``, a convolution ``pad_mode``, a
    transposed one ``trim_right_ratio``. Raises ``ValueError`` for a layer that is none of these.
    """
    return Chain(stage for layer in layers for stage in _seanet_stage(layer))


def _seanet_stage(layer: nn.Module) -> Sequence[Stage]:
    if isinstance(layer, nn.Identity):
        return []
    if isinstance(layer, nn.ELU | nn.Tanh):
        return [Pointwise(layer)]
    if isinstance(block := getattr(layer, "block", None), nn.Module):
        return [Residual(seanet(block.children()), seanet([layer.get_submodule("shortcut")]))]
    if isinstance(lstm := getattr(layer, "lstm", None), nn.LSTM):
        return [Recurrent(lstm, skip=bool(getattr(layer, "skip", True)))]
    if not getattr(layer, "causal", False):
        raise ValueError(f"The decoder holds a layer {type(layer).__name__} that is not causal; it cannot be streamed.")
    up = next((m for m in layer.modules() if isinstance(m, nn.ConvTranspose1d)), None)
    if up is not None:
        total = up.kernel_size[0] - up.stride[0]
        right = math.ceil(total * _number(layer, "trim_right_ratio"))
        return [Upsampling(up, total - right, right)]
    conv = next(m for m in layer.modules() if isinstance(m, nn.Conv1d))
    return [Convolution(conv, (conv.kernel_size[0] - 1) * conv.dilation[0], mode=str(layer.pad_mode))]


def _number(layer: nn.Module, name: str) -> float:
    value = getattr(layer, name)
    assert isinstance(value, int | float), f"{name} is {value!r}"
    return float(value)
