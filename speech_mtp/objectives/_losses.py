"""Losses of states ``[n, D]`` against an output layer ``weight [V, D]``, computed for some positions at a time.

Whatever is made of a position's V scores is gone before the next positions are scored: scores, loss and gradients come
together, in the forward pass (the gradient of a softmax needs nothing but the softmax).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from speech_mtp.layouts.base import IGNORE


def mean_cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """In nats, of ``scores [B, T, V]``: the mean over the ``labels [B, T]`` that there are; zero if there is none."""
    total = F.cross_entropy(scores.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


SCORES = 1 << 22
"""Scores that exist at a time, in float32: 16 MB."""

Sparse = tuple[Tensor, Tensor]
"""Targets of n positions: tokens ``[n, A]`` int64, and the weight of each ``[n, A]``, float32. Weights of a position
sum to one; one of 0 counts for nothing, whatever its token."""


def listwise_loss(states: Tensor, weight: Tensor, targets: Callable[[int, int], Sparse]) -> Tensor:
    """ListNet (Cao et al. 2007): the mean over n of ``-sum_v y_v log softmax(states weight^T)_v``, in nats.

    ``targets(begin, end)`` gives the y of positions ``begin`` to ``end``. With one target a position it is the cross
    entropy. Under autocast products are computed in its precision, softmax and sums in float32. Zero for no position.
    """
    found: Tensor = _Listwise.apply(states, weight, targets)
    return found


class _Listwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, targets: Callable[[int, int], Sparse]) -> Tensor:
        device = states.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        with torch.autocast(device, enabled=False):
            x, w = states.detach().to(dtype), weight.detach().to(dtype)
            learns = any(ctx.needs_input_grad)
            of_x, of_w = torch.zeros_like(x), torch.zeros_like(weight) if learns else None
            total = torch.zeros((), device=states.device)
            size = max(1, SCORES // len(w))
            for begin in range(0, len(x), size):
                block = slice(begin, begin + size)
                scores = (x[block] @ w.T).float()
                norm = scores.logsumexp(-1, keepdim=True)
                tokens, share = targets(begin, min(begin + size, len(x)))
                total += (share * (norm - scores.gather(1, tokens))).sum()
                if of_w is not None:
                    slope = scores.sub_(norm).exp_().scatter_add_(1, tokens, -share).to(dtype)
                    of_x[block] = slope @ w
                    _add_product(of_w, slope.T, x[block])
                    del slope
                del scores, norm  # or they would live while the next are made
        count = max(1, len(x))
        if of_w is not None:
            ctx.save_for_backward(of_x.div_(count).to(states.dtype), of_w.div_(count))
        return total / count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        of_x, of_w = ctx.saved_tensors
        return gradients[0] * of_x, gradients[0] * of_w, None


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a b``, without the product beside it where the precision is the same."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b
