"""The mean of a loss over many rows, piece by piece, with its gradients.

Scores of a vocabulary for all rows are the largest thing that training makes, and each thing that is made of them is as
large again. For a few rows at a time they stay near the processor, and of the others only the gradients of the states
are kept: these are computed together with the mean and wait for what it will be multiplied by (as in Liger Kernel's
fused linear cross entropy, arXiv:2410.10989).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Term = Callable[[Tensor, slice], Tensor]
"""States ``[m, D]`` of the rows of a slice -> the mean of their losses."""

NUMBERS = {"cpu": 1 << 20, "cuda": 1 << 28}
"""How many scores are made at a time."""


def rows_at_once(scores: int, device: torch.device) -> int:
    """How many rows of so many scores make a piece."""
    return max(1, NUMBERS.get(device.type, NUMBERS["cuda"]) // max(1, scores))


def mean_of_pieces(term: Term, states: Tensor, rows: int) -> Tensor:
    """The mean of ``term`` over all ``states [n, D]``, of which ``rows`` make a piece. Its gradients are those of the
    states and of the parameters that the first row's term is made of; what else the terms are made of is not kept."""
    if not len(states):
        return term(states, slice(0, 0))
    if not torch.is_grad_enabled():
        return _over_pieces(term, states, rows, lambda share, piece: None)
    parameters = _leaves_of(term(states[:1].detach(), slice(0, 1)))
    mean: Tensor = _ByPieces.apply(term, rows, states, *parameters)
    return mean


class _ByPieces(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, term: Term, rows: int, states: Tensor, *parameters: Tensor) -> Tensor:
        of_states, sums = [], [torch.zeros_like(parameter) for parameter in parameters]

        def use(share: Tensor, piece: Tensor) -> None:
            own, *others = torch.autograd.grad(share, [piece, *parameters])
            of_states.append(own)
            for total, more in zip(sums, others, strict=True):
                total += more

        with torch.enable_grad():
            mean = _over_pieces(term, states.detach(), rows, use)
        ctx.save_for_backward(torch.cat(of_states), *sums)
        return mean

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(own * grads[0] for own in ctx.saved_tensors)


def _over_pieces(term: Term, states: Tensor, rows: int, use: Callable[[Tensor, Tensor], None]) -> Tensor:
    """The sum of the pieces' shares of the mean; each is given to ``use`` with the states that it is of."""
    shares = []
    for first in range(0, len(states), rows):
        piece = states[first : first + rows]
        if torch.is_grad_enabled():
            piece = piece.detach().requires_grad_()
        share = term(piece, slice(first, first + rows)) * (len(piece) / len(states))
        use(share, piece)
        shares.append(share.detach())
    return torch.stack(shares).sum()


def _leaves_of(value: Tensor) -> list[Tensor]:
    """The parameters that ``value`` was computed from."""
    found: dict[int, Tensor] = {}
    known: set[Any] = set()
    left = [value.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in known:
            continue
        known.add(node)
        if hasattr(node, "variable"):
            found[id(node.variable)] = node.variable
        left += [after for after, _ in node.next_functions]
    return list(found.values())
