"""Concept-aware fine-tuning (CAFT, arXiv:2506.07833): auxiliary heads over the tokens of a concept, which fade.

Every offset from x_{t+2} on has a layer of its own, which begins as a copy of the trunk's last but one and reads the
trunk's final states. Training has two stages::

    warm-up    sum_i beta^i CE_i                              the trunk stands still; the heads learn
    after it   CE_next + gamma s sum_i beta^i CE_i            s = sin(pi / 2 (1 - step / steps)) fades from 1 to 0

The authors' program reads the input of the last layer in the warm-up and the final states after it; here heads read the
final states always. Its adapters, and an unembedding that stands still while the trunk learns, are left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from torch import Tensor

from speech_mtp.heads.parallel import Parallel
from speech_mtp.lm.causal_lm import CausalLM
from speech_mtp.objectives._trunk_heads import TrunkHeads, offset_of
from speech_mtp.objectives.base import Course, Scoring
from speech_mtp.objectives.ntp import NTP
from speech_mtp.types import LMOutput, Positions


def reflected_sine(step: int, steps: int) -> float:
    """``sin(pi / 2 (1 - step / steps))``: 1 at first, 0 at the end."""
    return math.sin(math.pi / 2 * (1 - step / steps))


class Concept(TrunkHeads):
    """Terms ``next`` and, for each of ``num_heads``, ``ahead2``, ... The first ``warmup`` steps train the heads alone,
    which pays for a trunk that is trained already. Raises ValueError for values that cannot be, and for a warm-up that
    leaves no step."""

    def __init__(self, num_heads: int = 4, gamma: float = 0.01, beta: float = 0.8, warmup: int = 0) -> None:
        super().__init__()
        if num_heads < 1 or warmup < 0 or not gamma > 0 or not beta > 0:
            raise ValueError(
                f"concept has num_heads {num_heads}, gamma {gamma}, beta {beta} and warmup {warmup}; warmup must "
                "be 0 or more, the others positive."
            )
        self.num_heads, self.gamma, self.beta, self.warmup = num_heads, gamma, beta, warmup
        self.number = 0

    def bind(self, lm: CausalLM, course: Course) -> None:
        if self.num_heads >= course.length:
            raise ValueError(
                f"num_heads is {self.num_heads}, but the rows have {course.length} tokens; make it smaller."
            )
        if course.steps is None or course.steps <= self.warmup:
            raise ValueError(f"The warm-up of {self.warmup} steps leaves no step of {course.steps} to the trunk.")
        self.steps = course.steps
        head = self.make_head({"name": "parallel", "num_heads": self.num_heads, "taps": [-1]}, lm, course)
        assert isinstance(head, Parallel)
        layers = lm.model.layers
        for block in head.blocks:
            block.load_state_dict(layers[max(0, len(layers) - 2)].state_dict())

    def at_step(self, number: int) -> None:
        self.number, self.trains_trunk = number, number >= self.warmup

    def weight(self, name: str) -> float:
        if name == "next":
            return 1.0
        decayed: float = self.beta ** (offset_of(name) - 1)
        if not self.trains_trunk:
            return decayed
        return self.gamma * reflected_sine(self.number - self.warmup, self.steps - self.warmup) * decayed

    def terms(self, lm: Scoring, out: LMOutput, positions: Positions) -> Iterator[tuple[str, Tensor]]:
        if self.trains_trunk:
            yield from NTP().terms(lm, out, positions)
        yield from self.ahead_terms(out, positions)
