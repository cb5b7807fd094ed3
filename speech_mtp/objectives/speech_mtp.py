"""What heads of a speech LM are trained on: the groups ahead, scored by the model's own output layer.

A head predicts the state of a position; the output layer turns that state into one distribution a channel, each given
the true channels before it (teacher-forced within the group too). Every offset is one term, which can be
back-propagated before the next is computed, as in :mod:`speech_mtp.objectives.mtp`, whose settings and pure functions
these are.

Gradients pass through the output layer: its weights, and the trunk's, must be frozen by the caller.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from speech_mtp.heads.base import MTPHead
from speech_mtp.layouts.base import IGNORE
from speech_mtp.lm.group_lm import GroupLM
from speech_mtp.objectives.mtp import Anchored, MTPConfig, divergence, labels_at, offset_weights
from speech_mtp.types import LMOutput, Positions

KINDS = {"hard", "soft"}


@dataclass
class GroupStep:
    """One offset: its ``loss`` (nats per token, mean over channels), its ``weight``, and ``right [n, C]`` bool: where
    the best guess of a channel, given the true ones before it, is the token."""

    offset: int
    loss: Tensor
    weight: float
    right: Tensor


class SpeechMTP:
    """The terms of one ``head`` of ``lm``. ``taps`` are the layers that the trunk's output holds (default: the head's).

    ``hard``: cross entropy of the true group. ``soft``: Kullback-Leibler divergence from the trunk's own distribution
    of every channel, given the same groups and channels before it. Raises ValueError for other losses, and for heads
    that draft one channel or in blocks.
    """

    def __init__(self, head: MTPHead, lm: GroupLM, config: MTPConfig, taps: tuple[int, ...] | None = None) -> None:
        self.head, self.lm, self.losses = head, lm, config.losses
        kind = type(head).__name__
        if head.needs_tokens or isinstance(head, Anchored):
            raise ValueError(
                f"The head {kind} is trained on text alone; heads of speech are medusa, hydra, eagle3, ..."
            )
        if not config.losses or min(config.losses.values()) <= 0 or config.losses.keys() - KINDS:
            raise ValueError("The losses of a speech head are hard and soft, at least one, with positive weights.")
        if config.anchors is not None:
            raise ValueError("Only block drafters have anchors, and they are trained on text alone; leave anchors out.")
        weights = offset_weights(config.weighting, config.beta, len(head.offsets))
        self.weights = dict(zip(head.offsets, weights, strict=True))
        self._select = [(taps or head.taps).index(tap) for tap in head.taps]

    def steps(self, out: LMOutput, positions: Positions) -> Iterator[GroupStep]:
        """The terms, one at a time. ``out`` are the trunk's states of ``positions`` with their ``inputs``, detached."""
        assert positions.labels is not None, "training positions carry labels"
        assert out.inputs is not None, "heads read the input vectors too"
        first = self.head.offsets[0]
        mine = LMOutput(
            out.hidden[:, :, self._select], final=out.top, wanted=labels_at(positions, first, first) != IGNORE
        )
        laws = self._laws(out, positions.labels) if "soft" in self.losses else []
        for offset, states in self.head.unroll_states(mine, out.inputs):
            b, t = (labels_at(positions, offset, first) != IGNORE).nonzero(as_tuple=True)
            ahead = t + offset - 1  # the trunk's state there predicts the same group
            loss, right = self._guess(states[b, t], positions.labels[b, ahead], [law[b, ahead] for law in laws])
            del states  # or they would live while the next are made
            yield GroupStep(offset, loss, self.weights[offset], right)

    @torch.no_grad()
    def _laws(self, out: LMOutput, labels: Tensor) -> list[Tensor]:
        """The trunk's own distribution of every channel after every position, as logarithms ``[B, T, V_c]``: once for
        all offsets, since codebooks are small."""
        return [score.float().log_softmax(-1) for score in self.lm.output.score(out.top, labels)]

    def _guess(self, states: Tensor, group: Tensor, laws: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The head's ``states [n, D]`` of positions that hold ``group [n, C]``; ``laws [n, V_c]`` are the trunk's."""
        scores = [score[0].float() for score in self.lm.output.score(states[None], group[None])]
        parts: dict[str, Tensor] = {}
        if "hard" in self.losses:
            parts["hard"] = torch.stack(
                [F.cross_entropy(score, group[:, c], reduction="sum") for c, score in enumerate(scores)]
            ).mean() / max(1, len(group))
        if "soft" in self.losses:
            parts["soft"] = torch.stack([divergence(p, q) for p, q in zip(laws, scores, strict=True)]).mean()
        loss = torch.stack([weight * parts[name] for name, weight in self.losses.items()]).sum()
        with torch.no_grad():
            return loss, torch.stack([score.argmax(-1) == group[:, c] for c, score in enumerate(scores)], -1)
