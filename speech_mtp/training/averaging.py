"""An exponential average of weights over the steps of a training (Polyak averaging)."""

from __future__ import annotations

import copy

import torch
from torch import nn


def average_of(module: nn.Module) -> nn.Module:
    """A copy of ``module`` that is not trained, for :func:`update`."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def update(average: nn.Module, module: nn.Module, decay: float, step: int) -> None:
    """Move ``average`` towards ``module``; in early steps it forgets faster, so that it never lags by more than a few
    percent of the steps so far."""
    decay = min(decay, (1 + step) / (20 + step))
    torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)
