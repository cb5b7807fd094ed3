"""Token order prediction (TOP, arXiv:2508.19228): besides the next token, which tokens come soon, and in what order.

A second output layer scores every token by how near it is: its targets are the tokens ahead, weighted by a softmax of
minus the distance to their first occurrence. The layer goes when training is done.

Two things differ from the authors' program. Distances are float32 (in its float16 two beyond 2048 are the same), and
have a temperature: with 1, theirs, the nearest five tokens weigh 0.99, however long the window. And the window ends as
in their fused kernel: distances are smaller than ``window``, where their plain version has that of ``window`` too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from speech_mtp.layouts.base import IGNORE
from speech_mtp.lm.causal_lm import CausalLM
from speech_mtp.objectives._losses import Sparse, listwise_loss
from speech_mtp.objectives.base import Course, Objective, Scoring
from speech_mtp.objectives.ntp import NTP
from speech_mtp.types import LMOutput, Positions

FAINT = 30.0
"""Targets that weigh less than e to the minus this, of the nearest's weight, are left out: 1e-13, which float32 adds to
nothing."""


def previous_place(labels: Tensor, segment: Tensor) -> Tensor:
    """``[B, T]``: the last position before each that has the same label in the same segment, -1 where there is none."""
    key = (segment << 32) + labels
    order = key.argsort(dim=1, stable=True)
    ranked = key.gather(1, order)
    same = ranked[:, 1:] == ranked[:, :-1]
    before = torch.where(same, order[:, :-1], -1)
    return torch.full_like(order, -1).scatter(1, order[:, 1:], before)


def proximity(
    labels: Tensor, segment: Tensor, previous: Tensor, at: tuple[Tensor, Tensor], distances: tuple[int, float]
) -> Sparse:
    """What the positions ``at`` (rows and places, ``[n]``; they must have a label) are to rank: the tokens ahead
    ``[n, window]``, and their weights, ``softmax(-distance / temperature)`` over the first occurrences in the document.

    ``labels, segment, previous [B, T]``, the last of :func:`previous_place`; ``distances`` are the window, in tokens,
    and the temperature. The next token has distance 0.
    """
    window, temperature = distances
    row, place = at[0][:, None], at[1][:, None]
    distance = torch.arange(window, device=labels.device)
    there = (place + distance).clamp(max=labels.shape[1] - 1)
    tokens = labels[row, there]
    counts = (place + distance < labels.shape[1]) & (segment[row, there] == segment[row, place]) & (tokens != IGNORE)
    counts &= previous[row, there] < place
    weights = (-distance.float() / temperature).masked_fill(~counts, -math.inf).softmax(-1)
    return tokens.clamp(min=0), weights


class TokenOrder(Objective, nn.Module):
    """Terms ``next``, and ``order`` times ``share``. ``window`` and ``temperature`` are in tokens. Raises ValueError
    for values that are not positive."""

    unembedding: nn.Linear

    def __init__(self, window: int = 4096, temperature: float = 1.0, share: float = 1.0) -> None:
        super().__init__()
        if window < 1 or not temperature > 0 or not share > 0:
            raise ValueError(
                f"token_order has window {window}, temperature {temperature} and share {share}; all must be positive."
            )
        self.share, self.temperature = share, temperature
        self.window = min(window, math.ceil(FAINT * temperature))

    def bind(self, lm: CausalLM, course: Course) -> None:
        self.unembedding = nn.Linear(lm.dim, lm.vocab_size, bias=False)

    def weight(self, name: str) -> float:
        return self.share if name == "order" else 1.0

    def terms(self, lm: Scoring, out: LMOutput, positions: Positions) -> Iterator[tuple[str, Tensor]]:
        yield from NTP().terms(lm, out, positions)
        yield "order", self.order_loss(out, positions)

    def order_loss(self, out: LMOutput, positions: Positions) -> Tensor:
        """The mean over the positions that have a label."""
        assert positions.labels is not None, "training positions carry labels"
        labels, segment = positions.labels[..., 0], positions.segment
        row, place = (labels != IGNORE).nonzero(as_tuple=True)
        previous = previous_place(labels, segment)
        distances = min(self.window, segment.shape[1]), self.temperature

        def targets(begin: int, end: int) -> Sparse:
            return proximity(labels, segment, previous, (row[begin:end], place[begin:end]), distances)

        return listwise_loss(out.top[row, place], self.unembedding.weight, targets)
