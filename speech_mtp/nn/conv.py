"""Convolutional leaves: causal ones with explicit per-row streaming state, and non-causal ones for encoders.

Sequences are channel-last, ``[B, F, D]``. A causal layer is called in one way for training, offline and
streaming: ``y, cache = layer(x, cache, lengths)``. ``cache`` holds the last ``kernel - 1`` inputs of each row
(zeros for a fresh row) and ``lengths [B]`` says how many of the F new steps of a row count, so rows
may advance by different numbers of steps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def last_valid(sequence: Tensor, lengths: Tensor, keep: int) -> Tensor:
    """The ``keep`` steps that precede the end of each row: ``sequence [B, keep + F, D]`` -> ``[B, keep, D]``.

    ``lengths [B]`` counts the valid steps of the F new ones; a row of length 0 keeps its old steps.
    """
    steps = lengths[:, None] + torch.arange(keep, device=sequence.device)
    return sequence.gather(1, steps[..., None].expand(-1, -1, sequence.shape[-1]))


class CausalConv(nn.Module):
    """Causal convolution over time, stride 1. Reads ``kernel - 1`` past steps and no future one."""

    def __init__(self, dim_in: int, dim_out: int, kernel: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(dim_in, dim_out, kernel, groups=groups)
        self.past = kernel - 1
        self.dim_in = dim_in

    def fresh(self, rows: int, device: torch.device) -> Tensor:
        """The cache of ``rows`` rows that have seen nothing: ``[rows, kernel - 1, dim_in]`` zeros."""
        return torch.zeros(rows, self.past, self.dim_in, device=device)

    def forward(self, x: Tensor, cache: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """``x [B, F, dim_in]`` -> ``[B, F, dim_out]`` and the new cache."""
        joined = torch.cat([cache.to(x.dtype), x], dim=1)
        if (
            self.conv.groups == self.dim_in == self.conv.out_channels
            and x.device.type == "cpu"
            and not torch.is_grad_enabled()
        ):
            y = depthwise(joined, self.conv.weight, self.conv.bias)
        else:
            y = self.conv(joined.transpose(1, 2)).transpose(1, 2)
        return y, last_valid(joined, lengths, self.past)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x [B, past + F, D]`` convolved channel by channel with ``weight [D, 1, past + 1]``: ``[B, F, D]``.

    Tap by tap: on a CPU a third of the time of torch's convolution, and a twentieth in float64, for some dozen steps.
    """
    taps = weight[:, 0].T
    steps = x.shape[1] - len(taps) + 1
    y = x[:, :steps] * taps[0] if bias is None else torch.addcmul(bias, x[:, :steps], taps[0])
    for k in range(1, len(taps)):
        y.addcmul_(x[:, k : k + steps], taps[k])
    return y


class Film(nn.Module):
    """Layer norm whose gain and bias come from a condition vector (adaptive layer norm)."""

    def __init__(self, dim: int, dim_condition: int) -> None:
        super().__init__()
        self.dim = dim
        self.affine = nn.Linear(dim_condition, 2 * dim)
        nn.init.zeros_(self.affine.weight)
        with torch.no_grad():
            self.affine.bias.copy_(torch.cat([torch.ones(dim), torch.zeros(dim)]))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """``x [B, F, dim]``, ``condition [B, dim_condition]`` -> ``[B, F, dim]``."""
        gain, bias = self.affine(condition)[:, None].chunk(2, dim=-1)
        return F.layer_norm(x, (self.dim,)) * gain + bias


class CausalBlock(nn.Module):
    """ConvNeXt block (Liu et al. 2022, as in Vocos) made causal and conditioned on timbre by ``Film``."""

    def __init__(self, dim: int, kernel: int, expansion: int, dim_condition: int) -> None:
        super().__init__()
        self.depthwise = CausalConv(dim, dim, kernel, groups=dim)
        self.norm = Film(dim, dim_condition)
        self.up = nn.Linear(dim, expansion * dim)
        self.down = nn.Linear(expansion * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), 0.1))

    def fresh(self, rows: int, device: torch.device) -> Tensor:
        return self.depthwise.fresh(rows, device)

    def forward(self, x: Tensor, condition: Tensor, cache: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        y, cache = self.depthwise(x, cache, lengths)
        y = self.down(F.gelu(self.up(self.norm(y, condition))))
        return x + self.scale * y, cache


class Block(nn.Module):
    """Non-causal ConvNeXt block for encoders: sees ``kernel // 2`` steps on either side. ``[B, F, dim]``."""

    def __init__(self, dim: int, kernel: int = 7, expansion: int = 3) -> None:
        super().__init__()
        self.reach = kernel // 2
        self.depthwise = nn.Conv1d(dim, dim, kernel, padding=self.reach, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.up = nn.Linear(dim, expansion * dim)
        self.down = nn.Linear(expansion * dim, dim)
        self.scale = nn.Parameter(torch.full((dim,), 0.1))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """``mask [B, F, 1]`` is 1 on valid steps; padding is zeroed so that it never leaks into a row."""
        y = self.depthwise((x * mask).transpose(1, 2)).transpose(1, 2)
        return x + self.scale * self.down(F.gelu(self.up(self.norm(y))))
