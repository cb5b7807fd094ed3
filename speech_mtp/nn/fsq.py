"""Finite scalar quantisation (Mentzer et al. 2023, arXiv:2309.15505): a product of small uniform grids.

No codebook is learned, so no code can die of neglect; the implicit codebook size is the product of the
levels. Gradients pass straight through the rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FSQ(nn.Module):
    """Rounds each of ``len(levels)`` numbers to one of ``levels[i]`` values in [-1, 1]."""

    _levels: Tensor
    _basis: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        if any(level < 2 for level in levels):
            raise ValueError(f"FSQ levels are {levels}; each must be at least 2.")
        self.levels = tuple(levels)
        self.size = math.prod(levels)
        basis = [math.prod(levels[:i]) for i in range(len(levels))]
        self.register_buffer("_levels", torch.tensor(levels), persistent=False)
        self.register_buffer("_basis", torch.tensor(basis), persistent=False)

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """``z [..., d]`` (unbounded) -> values ``[..., d]`` on the grid (straight-through) and codes ``[...]``."""
        place = self.place(z)
        digits = place.round()
        values = place + (digits - place).detach()
        codes = (digits.long().clamp(min=0) * self._basis).sum(-1)
        return values / (self._levels - 1).to(z.dtype) * 2 - 1, codes

    def place(self, z: Tensor) -> Tensor:
        """``z [..., d]`` -> where it lies before rounding, in grid steps from 0 to ``levels[i] - 1``, ``[..., d]``."""
        return (torch.tanh(z) + 1) / 2 * (self._levels - 1).to(z.dtype)

    def log_probabilities(self, place: Tensor, softness: float = 0.15) -> Tensor:
        """``place [..., d]`` -> log probabilities of every level ``[..., d, max(levels)]`` of a soft rounding.

        The softmax of minus the squared distance over ``softness``; levels that a number lacks have ``-inf``.
        """
        level = torch.arange(max(self.levels), device=place.device)
        scores = -(place[..., None] - level).square() / softness
        return scores.masked_fill(level >= self._levels[:, None], -math.inf).log_softmax(-1)

    def unevenness(self, place: Tensor, mask: Tensor) -> Tensor:
        """How unevenly the levels are used by ``place [B, F, d]`` in the valid frames of ``mask [B, F, 1]``: log of
        their number less the entropy of the mean soft rounding, mean over the ``d`` numbers, in nats; 0 where all are
        used alike (the second half of the entropy penalty of Yu et al. 2023, arXiv:2310.05737, equation 5)."""
        used = (self.log_probabilities(place).exp() * mask[..., None]).sum((0, 1)) / mask.sum()  # [d, max(levels)]
        entropy = torch.special.entr(used.clamp(min=1e-9)).sum(-1)  # clamped: at 0 its gradient is infinite
        return (self._levels.to(entropy).log() - entropy).mean()

    def values(self, codes: Tensor) -> Tensor:
        """Codes ``[...]`` -> grid values ``[..., d]``; exact inverse of ``forward``'s codes."""
        digits = codes[..., None] // self._basis % self._levels
        return digits.float() / (self._levels - 1) * 2 - 1
