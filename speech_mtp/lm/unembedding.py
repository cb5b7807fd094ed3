"""The output layer of a text model: hidden states -> logits of the next token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from speech_mtp.lm.block_weights import OUTPUT, BlocksOf
from speech_mtp.lm.output import OutputLayer, Pick
from speech_mtp.nn.blocks import BlockLinear
from speech_mtp.nn.packed import FastLinear, PackedLinear, is_invariant


class Unembedding(OutputLayer):
    """Hidden states -> logits of the next token by ``weight [V, D]``, which belongs to the model."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__((int(torch.as_tensor(layer.weight).shape[0]),))
        self._layer: tuple[Any, ...] = (layer,)  # in a tuple: shared, not owned

    @property
    def weight(self) -> Tensor:
        """``[V, D]``, the model's own."""
        found: Tensor = self._layer[0].weight
        return found

    def packed(self, invariant: bool = False) -> PackedLinear:
        """The layer on packed weights, without gradients, for :meth:`replace`; ``invariant`` as for
        :class:`PackedLinear`. Raises ValueError where that cannot be had."""
        layer = self._layer[0]
        packed = PackedLinear(layer.weight, getattr(layer, "bias", None), invariant)
        if invariant and not is_invariant(packed):
            raise ValueError("On this processor the output layer depends on the number of rows.")
        return packed

    def in_blocks(self, blocks: BlocksOf) -> BlockLinear:
        """The layer on weights in blocks, for :meth:`replace`."""
        layer = self._layer[0]
        return BlockLinear(blocks(OUTPUT, layer.weight), getattr(layer, "bias", None))

    def replace(self, layer: FastLinear | nn.Module) -> None:
        """Multiply by ``layer`` from now on."""
        self._layer = (layer,)

    def logits(self, hidden: Tensor) -> Tensor:
        """``[..., D]`` -> ``[..., V]``, in the model's precision."""
        layer = self._layer[0]
        out: Tensor = layer(hidden if isinstance(layer, FastLinear) else hidden.to(layer.weight.dtype))
        return out

    def score(self, hidden: Tensor, tokens: Tensor) -> list[Tensor]:
        return [self.logits(hidden)]

    def sample(self, hidden: Tensor, pick: Pick) -> Tensor:
        return pick(0, self.logits(hidden))[:, None]
