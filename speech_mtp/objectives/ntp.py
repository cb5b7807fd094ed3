"""Next-position prediction: cross entropy of every channel of the next position, averaged per stream."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from speech_mtp.objectives._losses import mean_cross_entropy
from speech_mtp.objectives.base import Objective, Scoring
from speech_mtp.types import LMOutput, Positions


class NTP(Objective):
    """Of text the term ``next``; of speech ``control`` and ``stream0``, ``stream1``, ... : mean CE in nats per token of
    that channel or stream."""

    for_speech = True

    def terms(self, lm: Scoring, out: LMOutput, positions: Positions) -> Iterator[tuple[str, Tensor]]:
        yield from channel_terms(lm, out, positions)


def channel_terms(
    lm: Scoring, out: LMOutput, positions: Positions, weights: Sequence[float] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Of each name in ``lm.loss_names`` the mean over its channels, which count ``weights`` (None: all the same). What
    counts nothing costs nothing, and names without any channel that counts are left out."""
    labels, names = positions.labels, lm.loss_names
    assert labels is not None, "training positions carry labels"
    shares = [1.0] * len(names) if weights is None else weights
    losses: dict[str, list[Tensor]] = {}
    totals: dict[str, float] = {}
    for c, score in enumerate(lm.output.score(out.top, labels)):
        if shares[c]:
            losses.setdefault(names[c], []).append(shares[c] * mean_cross_entropy(score, labels[..., c]))
            totals[names[c]] = totals.get(names[c], 0.0) + shares[c]
    for name, found in losses.items():
        yield name, torch.stack(found).sum() / totals[name]
