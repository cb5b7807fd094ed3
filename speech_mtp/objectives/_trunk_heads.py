"""What is common to objectives whose draft head learns with the trunk: how it is made, scored one offset after another
over packed documents, and left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from torch import Tensor, nn

from speech_mtp import plugins
from speech_mtp.heads.base import Binding, MTPHead, TrunkShape
from speech_mtp.lm.causal_lm import CausalLM
from speech_mtp.objectives.base import Course, Objective
from speech_mtp.objectives.mtp import MTP, MTPConfig
from speech_mtp.types import LMOutput, Positions

UNIFORM = MTPConfig(weighting="uniform")


class TrunkHeads(Objective, nn.Module):
    """``head`` (a plug-in of ``heads``, with its settings ``spec``) predicts ``x_{t+2}`` and further; None until it is
    made, and where there is none."""

    head: MTPHead | None
    spec: dict[str, Any]
    ahead: MTP

    def __init__(self) -> None:
        super().__init__()
        self.head = None

    def make_head(
        self,
        spec: dict[str, Any],
        lm: CausalLM,
        course: Course,
        config: MTPConfig = UNIFORM,
        teacher: Callable[[Tensor], Tensor] | None = None,
    ) -> MTPHead:
        """The head that ``spec`` names, for ``lm``; ``config`` and ``teacher`` as for ``MTP``. Raises ValueError where
        it does not fit the trunk or the rows, and for a reduced draft vocabulary, which would have to be chosen by what
        the documents hold."""
        head: MTPHead = plugins.build("heads", spec, shape=TrunkShape(**lm.shape()))
        if head.token_map is not None:
            raise ValueError("A head that learns with its trunk drafts all tokens; leave draft_vocab out.")
        if head.offsets[-1] > course.length:
            raise ValueError(
                f"The head looks {head.offsets[-1]} tokens ahead, but the rows have {course.length}; use a shorter "
                "head, or longer rows."
            )
        head.bind(Binding(**lm.binding()))
        self.head, self.spec = head, spec
        self.taps = (*(tap for tap in head.taps if tap != -1), -1)
        self.ahead = MTP(head, config, self.taps, teacher)
        return head

    def heads(self) -> dict[str, tuple[MTPHead, dict[str, Any]]]:
        return {} if self.head is None else {"head": (self.head, self.spec)}

    def ahead_terms(
        self, out: LMOutput, positions: Positions, count: int | None = None, above: Tensor | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """``ahead2``, ``ahead3``, ...: the first ``count`` offsets (None: all), each the mean over what lies in one
        document. One offset's logits exist at a time. ``above`` are the states of the teacher, if there is one."""
        for step in islice(self.ahead.steps(out, positions, above=above), count):
            yield f"ahead{step.offset}", step.loss
            del step  # and with it its logits


def offset_of(name: str) -> int:
    """Of the term ``next`` or ``ahead<offset>``."""
    return 1 if name == "next" else int(name.removeprefix("ahead"))
