"""Next-position prediction: cross entropy of every channel of the next position, averaged per stream."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from speech_mtp.lm.group_lm import GroupLM
from speech_mtp.objectives._losses import mean_cross_entropy
from speech_mtp.objectives.base import Course, Objective, Scoring
from speech_mtp.types import LMOutput, Positions


class NTP(Objective):
    """Of text the term ``next``; of speech ``control`` and ``stream0``, ``stream1``, ... : mean CE in nats per token of
    that channel or stream."""

    def bind_speech(self, lm: GroupLM, course: Course) -> None:
        pass

    def terms(self, lm: Scoring, out: LMOutput, positions: Positions) -> Iterator[tuple[str, Tensor]]:
        labels = positions.labels
        assert labels is not None, "training positions carry labels"
        losses: dict[str, list[Tensor]] = {}
        for c, (name, score) in enumerate(zip(lm.loss_names, lm.output.score(out.top, labels), strict=True)):
            losses.setdefault(name, []).append(mean_cross_entropy(score, labels[..., c]))
        for name, found in losses.items():
            yield name, torch.stack(found).mean()
