"""Registers (MuToR, arXiv:2505.10518): behind every token stands a register, which predicts a token further ahead.

The register behind x_t predicts x_{t+D} by the trunk's own output layer, and has the rotary position t + D - 1, that of
the token before the one to predict. D is drawn for every document. A register sees its document up to x_t and itself;
tokens see no register, so the trunk's states are those of a trunk without, and decoding needs none.

All registers are one vector, a parameter of the objective and no token, so no id of the vocabulary is taken. Of the
original the prompts that are read in both directions are left out: a document has no prompt.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from speech_mtp.layouts.base import IGNORE
from speech_mtp.lm.causal_lm import CausalLM
from speech_mtp.objectives._inserted import scored, small_vectors, stream, text_alone, with_inserted
from speech_mtp.objectives.base import Course, Inputs, Objective, Scoring
from speech_mtp.objectives.curricula import Curriculum, Spec
from speech_mtp.objectives.mtp import labels_at
from speech_mtp.objectives.ntp import NTP
from speech_mtp.types import LMOutput, Positions


def drawn_offsets(segment: Tensor, most: int) -> Tensor:
    """``[B, T]``: a number from 1 to ``most`` for each segment, drawn evenly."""
    rows, length = segment.shape
    drawn = torch.randint(1, most + 1, (rows, length + 1)).to(segment.device)  # a row has at most one segment a place
    return drawn.gather(1, segment)


def labels_ahead(positions: Positions, offsets: Tensor, most: int) -> Tensor:
    """``x_{t + D}`` ``[B, T]`` for D = ``offsets [B, T]``, at most ``most``; IGNORE in another document."""
    each = torch.stack([labels_at(positions, offset, 1) for offset in range(1, most + 1)], -1)
    return each.gather(-1, offsets[..., None] - 1)[..., 0]


class Registers(Objective, nn.Module):
    """Terms ``next`` times 1 - ``share``, and ``registers`` times ``share``, the paper's a. D is at most ``d_max``, or
    the k of the ``curriculum``'s phase. Raises ValueError for values that cannot be."""

    vectors: nn.Parameter

    def __init__(self, d_max: int = 4, share: float = 0.3, curriculum: Spec | None = None) -> None:
        super().__init__()
        if d_max < 1 or not 0 < share < 1:
            raise ValueError(f"registers has d_max {d_max} and share {share}; 1 or more, and between 0 and 1.")
        self.share, self.curriculum = share, Curriculum(curriculum, d_max)
        if any(phase.weights for phase in self.curriculum.phases):
            raise ValueError("The offsets of registers are drawn, not weighted; leave the curriculum's weights out.")

    @property
    def schedule(self) -> Curriculum:
        return self.curriculum

    def bind(self, lm: CausalLM, course: Course) -> None:
        super().bind(lm, course)
        self.vectors = small_vectors(lm, 1)

    def weight(self, name: str) -> float:
        return self.share if name == "registers" else 1 - self.share

    def prepare(self, lm: CausalLM, positions: Positions) -> Inputs:
        most = self.curriculum.phase.k
        offsets = drawn_offsets(positions.segment, most)
        labels = labels_ahead(positions, offsets, most)
        # A register without a token to predict needs no place beyond the document.
        index = torch.where(labels == IGNORE, positions.index, positions.index + offsets - 1)
        inputs = with_inserted(lm, positions, self.vectors, index[..., None], labels[..., None])
        inputs.sees = text_alone(inputs.positions.segment, extra=1, lag=0)
        return inputs

    def terms(self, lm: Scoring, out: LMOutput, positions: Positions) -> Iterator[tuple[str, Tensor]]:
        yield from NTP().terms(lm, *stream(out, positions, 0, extra=1))
        registers, theirs = stream(out, positions, 1, extra=1)
        assert theirs.labels is not None, "training positions carry labels"
        yield "registers", scored(lm, registers, theirs.labels[..., 0])
