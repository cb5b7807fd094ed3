"""Future n-grams (ProphetNet, arXiv:2001.04063) for a trunk without an encoder: n streams through the same layers.

All streams predict x_{t+1} at t, with the same label, and stream s sees the text up to x_{t-s} only: so it looks s + 1
tokens ahead. A predicting stream starts from a learnt vector in place of a token, sees the text and itself, and is seen
by nobody::

                 text a b c        stream 1, behind a b c
    a            x                 .
    behind a     .                 x                            sees nothing but itself: predicts b unseen
    b            x x               .
    behind b     x                   x                          sees a, predicts c

In ProphetNet the text's own stream predicts nothing, and a predicting stream 0 sees as much as the token does. Here the
text is stream 0 itself: in a trunk without an encoder both see the same, and plain decoding reads the text's states.
Positions are the trunk's own rotary ones in place of buckets of relative positions, and labels are not smoothed.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from speech_mtp.lm.causal_lm import CausalLM
from speech_mtp.objectives._inserted import scored, small_vectors, stream, text_alone, with_inserted
from speech_mtp.objectives.base import Course, Inputs, Objective, Scoring
from speech_mtp.objectives.ntp import NTP
from speech_mtp.types import LMOutput, Positions


class Prophet(Objective, nn.Module):
    """Terms ``next``, ``ahead2``, ... up to ``n``, each times 1 / n: the mean over the streams. Raises ValueError for
    an ``n`` below 2, or over the length of the rows."""

    vectors: nn.Parameter

    def __init__(self, n: int = 2) -> None:
        super().__init__()
        if n < 2:
            raise ValueError(f"prophet has n {n}; with less than 2 it predicts the next token alone, which is 'ntp'.")
        self.n = n

    def bind(self, lm: CausalLM, course: Course) -> None:
        if self.n > course.length:
            raise ValueError(f"n is {self.n}, but the rows have {course.length} tokens; make n smaller.")
        self.vectors = small_vectors(lm, self.n - 1)

    def weight(self, name: str) -> float:
        return 1 / self.n

    def prepare(self, lm: CausalLM, positions: Positions) -> Inputs:
        assert positions.labels is not None, "training positions carry labels"
        extra = self.n - 1
        index = positions.index[..., None].expand(-1, -1, extra)
        inputs = with_inserted(lm, positions, self.vectors, index, positions.labels.expand(-1, -1, extra))
        inputs.sees = text_alone(inputs.positions.segment, extra, lag=1)
        return inputs

    def terms(self, lm: Scoring, out: LMOutput, positions: Positions) -> Iterator[tuple[str, Tensor]]:
        yield from NTP().terms(lm, *stream(out, positions, 0, self.n - 1))
        for number in range(1, self.n):
            ahead, theirs = stream(out, positions, number, self.n - 1)
            assert theirs.labels is not None, "training positions carry labels"
            yield f"ahead{number + 1}", scored(lm, ahead, theirs.labels[..., 0])
