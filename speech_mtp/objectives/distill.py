"""Distillation from another trunk, the tokens ahead included (the idea of KAT-V1, arXiv:2507.08297).

The teacher, a larger trunk or an earlier one, stands still. Where the data have one token it has a law, and what the
student learns are both::

    next       (1 - share) CE(x_{t+1}, p)  +  share KL(p_teacher(. | x_<=t) || p)
    ahead k    (1 - share) CE(x_{t+k}, q_k)  +  share KL(p_teacher(. | x_<t+k) || q_k)      times beta

``p`` is the student's law of the next token, ``q_k`` that of its draft head ``k`` tokens ahead, which is told what a
teacher says who has read the tokens between. The report names the idea alone; formulas and weights are ours. Its
distillation between vocabularies is left out: a teacher has the student's vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from speech_mtp.layouts.base import IGNORE
from speech_mtp.lm.causal_lm import CausalLM
from speech_mtp.lm.llama_folder import read_llama
from speech_mtp.nn.visibility import mask_of, within_segments
from speech_mtp.objectives._trunk_heads import TrunkHeads
from speech_mtp.objectives.base import Course, Scoring
from speech_mtp.objectives.mtp import MTPConfig, cross_entropy, divergence
from speech_mtp.types import LMOutput, Positions


class Distill(TrunkHeads):
    """Terms ``next`` and ``next_law``, and for each offset of ``head`` (None: no head) ``ahead<offset>``, in which both
    parts are weighted already. ``teacher`` is the folder of a trunk. ``share`` lies between 0 and 1.

    Raises ValueError for values that cannot be, and at :meth:`bind` for a teacher that does not fit the student.
    """

    def __init__(
        self, teacher: str, share: float = 0.5, head: dict[str, Any] | str | None = "parallel", beta: float = 0.3
    ) -> None:
        super().__init__()
        if not 0 < share <= 1 or not beta > 0:
            raise ValueError(f"distill has share {share} and beta {beta}; share lies in (0, 1], beta is positive.")
        self.teacher_folder, self.share, self.beta = Path(teacher), share, beta
        self.wanted = {"name": head} if isinstance(head, str) else head

    def bind(self, lm: CausalLM, course: Course) -> None:
        teacher = read_llama(self.teacher_folder).to(lm.device).eval()
        if teacher.vocab_size != lm.vocab_size:
            raise ValueError(
                f"The teacher in {self.teacher_folder} knows {teacher.vocab_size} tokens and the student "
                f"{lm.vocab_size}; distillation needs one vocabulary."
            )
        if teacher.config.max_positions < course.length:
            raise ValueError(
                f"The teacher in {self.teacher_folder} reads {teacher.config.max_positions} tokens, and the rows have "
                f"{course.length}; make them shorter."
            )
        self._teacher = (teacher,)  # in a tuple: it is neither trained nor saved
        if self.wanted is not None:
            losses = {"hard": 1 - self.share, "soft": self.share}
            config = MTPConfig({name: weight for name, weight in losses.items() if weight}, "uniform")  # type: ignore[misc]
            self.make_head(self.wanted, lm, course, config, teacher.output.logits)

    def weight(self, name: str) -> float:
        return {"next": 1 - self.share, "next_law": self.share}.get(name, self.beta)

    def teachers(self) -> list[Path]:
        return [self.teacher_folder]

    def terms(self, lm: Scoring, out: LMOutput, positions: Positions) -> Iterator[tuple[str, Tensor]]:
        above = self._read(positions)
        labels = positions.labels
        assert labels is not None, "training positions carry labels"
        known = labels[..., 0] != IGNORE
        (scores,) = lm.output.score(out.top[known], labels[known])
        scores = scores.float()
        with torch.no_grad():
            law = self._teacher[0].output.logits(above[known]).float().log_softmax(-1)
        hard, soft = cross_entropy(scores, labels[known][:, 0]), divergence(law, scores)
        del scores, law
        yield "next", hard
        yield "next_law", soft
        del hard, soft
        if self.head is not None:
            yield from self.ahead_terms(out, positions, above=above)

    @torch.no_grad()
    def _read(self, positions: Positions) -> Tensor:
        """The teacher's states ``[B, T, D']``."""
        teacher, (rows, length) = self._teacher[0], positions.segment.shape
        mask = mask_of(within_segments(positions.segment), rows, length, teacher.device)
        return teacher(teacher.embed(positions.tokens[..., 0]), positions.index, mask).top
