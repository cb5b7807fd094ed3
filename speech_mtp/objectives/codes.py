"""The loss of a long id whose digits are predicted in parallel (RPG, Hou et al. 2025, facebookresearch/RPG_KDD2025).

A group of speech is the id, its codes are the digits: the loss is the mean over all of them of their cross entropy, one
term whatever stream a digit is of. It goes with an output layer that judges channels in parallel; with ``known`` groups
that never occurred are not drawn (:mod:`speech_mtp.lm.known_groups`).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from speech_mtp.lm.causal_lm import CausalLM
from speech_mtp.lm.group_lm import GroupLM
from speech_mtp.lm.output import Depth
from speech_mtp.objectives._losses import mean_cross_entropy
from speech_mtp.objectives.base import Course, Objective, Scoring
from speech_mtp.types import LMOutput, Positions


class Codes(Objective):
    """Terms ``control`` and ``codes``; give their weights in ``task.weights``."""

    for_speech = True

    def bind(self, lm: CausalLM, course: Course) -> None:
        raise ValueError(
            "The objective 'codes' is for speech: a position of text has one token, so its id has one digit."
        )

    def bind_speech(self, lm: GroupLM, course: Course) -> None:
        if isinstance(lm.output, Depth):
            raise ValueError(
                "The objective 'codes' judges the digits of a group in parallel; model.output must be 'known', "
                "'linear' or 'mlp'."
            )

    def terms(self, lm: Scoring, out: LMOutput, positions: Positions) -> Iterator[tuple[str, Tensor]]:
        labels = positions.labels
        assert labels is not None, "training positions carry labels"
        losses = [mean_cross_entropy(s, labels[..., c]) for c, s in enumerate(lm.output.score(out.top, labels))]
        yield "control", losses[0]
        yield "codes", torch.stack(losses[1:]).mean()
