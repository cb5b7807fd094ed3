"""Multi-token prediction of the trunk itself (Gloeckle et al. 2024, arXiv:2404.19737, section 2).

The trunk ends below its last layer, and each of n offsets has a last layer of its own, that of the next token included:
the trunk's own last layer is the head of x_{t+1}, and n - 1 further layers are those of x_{t+2}, ... All share the
final norm and the unembedding, and count the same. To compare at equal parameters, as the paper does, give the trunk
n - 1 layers less.

What is left is a plain trunk, and a draft head of the plug-in ``parallel``.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from speech_mtp.lm.causal_lm import CausalLM
from speech_mtp.objectives._trunk_heads import TrunkHeads, offset_of
from speech_mtp.objectives.base import Course, Scoring
from speech_mtp.objectives.curricula import Curriculum, Spec
from speech_mtp.objectives.ntp import NTP
from speech_mtp.types import LMOutput, Positions


class ParallelHeads(TrunkHeads):
    """Terms ``next``, ``ahead2``, ... up to ``n``, or up to the k of the ``curriculum``'s phase, whose weights count
    where it has some; a single phase gives fixed weights. Heads that a phase leaves out get no loss. Raises ValueError
    for an ``n`` that cannot be."""

    curriculum: Curriculum

    def __init__(self, n: int = 4, curriculum: Spec | None = None) -> None:
        super().__init__()
        if n < 2:
            raise ValueError(f"parallel_heads has n {n}; with less than 2 it is 'ntp'.")
        self.curriculum = Curriculum(curriculum, n)

    @property
    def schedule(self) -> Curriculum:
        return self.curriculum

    def bind(self, lm: CausalLM, course: Course) -> None:
        super().bind(lm, course)
        below = lm.config.num_layers - 1
        spec = {"name": "parallel", "num_heads": self.curriculum.k_max - 1, "taps": [below]}
        self.make_head(spec, lm, course)

    def weight(self, name: str) -> float:
        weights = self.curriculum.phase.weights
        return 1.0 if weights is None else weights[offset_of(name) - 1]

    def terms(self, lm: Scoring, out: LMOutput, positions: Positions) -> Iterator[tuple[str, Tensor]]:
        yield from NTP().terms(lm, out, positions)
        yield from self.ahead_terms(out, positions, self.curriculum.phase.k - 1)
