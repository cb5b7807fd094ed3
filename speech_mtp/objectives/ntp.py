"""Next-position prediction: cross entropy of every channel of the next group, averaged per stream."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from speech_mtp.layouts.base import IGNORE
from speech_mtp.lm.group_lm import GroupLM
from speech_mtp.objectives.base import Objective
from speech_mtp.types import LMOutput, Positions


class NTP(Objective):
    """Terms ``control`` and ``stream0``, ``stream1``, ... : mean CE in nats per token of that channel or stream."""

    def terms(self, lm: GroupLM, out: LMOutput, positions: Positions) -> Iterator[tuple[str, Tensor]]:
        labels = positions.labels
        assert labels is not None, "training positions carry labels"
        scores = lm.output.score(out.top, labels)
        losses = [
            F.cross_entropy(score.float().flatten(0, 1), labels[..., c].flatten(), ignore_index=IGNORE)
            for c, score in enumerate(scores)
        ]
        yield "control", losses[0]
        streams = len(lm.config.codebook_sizes)
        for k in range(streams):
            yield f"stream{k}", torch.stack(losses[1 + k :: streams]).mean()
