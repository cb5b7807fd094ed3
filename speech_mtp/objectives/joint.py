"""Draft heads of any kind, trained together with the trunk.

Two stages in one run (L-MTP, arXiv:2505.17505, sections 3.3 and 5, whose head is the default)::

    warm-up    sum_k w_k CE_k                       the trunk stands still; the heads learn
    after it   CE_next + beta sum_k w_k CE_k        both learn

With ``deepseek`` for a head and a ``beta`` of 0.3 it is DeepSeek-V3's multi-token prediction (arXiv:2412.19437, section
2.2, up to the mean over depths). A head that reads a learned ``mixture`` of layers, before a trunk that stands still
all the time (``warmup`` as long as the run), is the weighted hidden states of Mehra et al. (arXiv:2502.09419).

The authors' second stage of L-MTP trains adapters of the trunk; here the trunk itself learns.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from speech_mtp.lm.causal_lm import CausalLM
from speech_mtp.objectives._trunk_heads import TrunkHeads, offset_of
from speech_mtp.objectives.base import Course, Scoring
from speech_mtp.objectives.mtp import MTPConfig
from speech_mtp.objectives.ntp import NTP
from speech_mtp.types import LMOutput, Positions


class Joint(TrunkHeads):
    """Terms ``next`` and, for each offset of ``head`` (a plug-in of ``heads``, with its settings), ``ahead<offset>``.

    ``weighting`` and ``decay`` are those of :func:`speech_mtp.objectives.mtp.offset_weights`. Raises ValueError for
    values that cannot be, and at :meth:`bind` for heads that do not fit the trunk or the rows.
    """

    def __init__(
        self,
        head: dict[str, Any] | str = "leap",
        beta: float = 0.1,
        warmup: int = 0,
        weighting: str = "uniform",
        decay: float | None = None,
    ) -> None:
        super().__init__()
        if warmup < 0 or not beta > 0:
            raise ValueError(f"joint has beta {beta} and warmup {warmup}; beta must be positive, warmup 0 or more.")
        if weighting == "uniform" and decay is not None:
            raise ValueError(
                f"joint has the decay {decay}, but weighs all offsets alike; leave it out, or name a weighting."
            )
        self.spec = {"name": head} if isinstance(head, str) else dict(head)
        self.beta, self.warmup = beta, warmup
        self.config = MTPConfig(weighting=weighting, beta=decay)  # type: ignore[arg-type]

    def bind(self, lm: CausalLM, course: Course) -> None:
        self.make_head(self.spec, lm, course, self.config)
        self.at_step(0)

    def at_step(self, number: int) -> None:
        self.trains_trunk = number >= self.warmup

    def weight(self, name: str) -> float:
        if name == "next":
            return 1.0
        own = self.ahead.weights[offset_of(name)]
        return self.beta * own if self.trains_trunk else own

    def terms(self, lm: Scoring, out: LMOutput, positions: Positions) -> Iterator[tuple[str, Tensor]]:
        if self.trains_trunk:
            yield from NTP().terms(lm, out, positions)
        yield from self.ahead_terms(out, positions)
