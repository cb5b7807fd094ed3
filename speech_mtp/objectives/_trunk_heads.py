"""What is common to objectives with a layer of the trunk's own kind per offset: how they are run over packed documents,
scored one after another, and left behind as a draft head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from speech_mtp import plugins
from speech_mtp.heads.base import Binding, MTPHead, TrunkShape
from speech_mtp.heads.parallel import Parallel
from speech_mtp.layouts.base import IGNORE
from speech_mtp.lm.causal_lm import CausalLM
from speech_mtp.nn.visibility import Mask, mask_of, within_segments
from speech_mtp.objectives.base import Course, Objective, Scoring
from speech_mtp.objectives.mtp import cross_entropy, labels_at
from speech_mtp.types import LMOutput, Positions


def bound_head(spec: dict[str, Any], lm: CausalLM, course: Course) -> MTPHead:
    """The head that ``spec`` names, for ``lm``. Raises ValueError where it does not fit the trunk or the rows, and for
    a reduced draft vocabulary, which would have to be chosen by what the documents hold."""
    head: MTPHead = plugins.build("heads", spec, shape=TrunkShape(**lm.shape()))
    if head.token_map is not None:
        raise ValueError("A head that learns with its trunk drafts all tokens; leave draft_vocab out.")
    head.bind(Binding(**lm.binding()))
    if head.offsets[-1] >= course.length:
        raise ValueError(
            f"The head looks {head.offsets[-1]} tokens ahead, but the rows have {course.length}; use a shorter "
            "head, or longer rows."
        )
    return head


class TrunkHeads(Objective, nn.Module):
    """``head`` predicts ``x_{t+2}``, ``x_{t+3}``, ... by the trunk's final norm and unembedding."""

    head: Parallel
    spec: dict[str, Any]

    def make_head(self, lm: CausalLM, count: int, taps: tuple[int, ...]) -> None:
        """``count`` layers that read the trunk's layer ``taps``."""
        shape = TrunkShape(**lm.shape())
        self.head, self.spec = (
            Parallel(shape, count, taps),
            {"name": "parallel", "num_heads": count, "taps": list(taps)},
        )
        self.head.bind(Binding(**lm.binding()))

    def heads(self) -> dict[str, tuple[MTPHead, dict[str, Any]]]:
        return {"head": (self.head, self.spec)}

    def ahead_terms(self, lm: Scoring, out: LMOutput, positions: Positions, count: int) -> Iterator[tuple[str, Tensor]]:
        """The first ``count`` offsets: mean cross entropy in nats over what lies in the same document. One offset's
        logits exist at a time."""
        rows, length = positions.segment.shape
        mask = mask_of(within_segments(positions.segment), rows, length, positions.segment.device)
        for j, offset in enumerate(self.head.offsets[:count]):
            yield f"ahead{offset}", self._term(j, lm, out, positions, mask)

    def _term(self, j: int, lm: Scoring, out: LMOutput, positions: Positions, mask: Mask) -> Tensor:
        labels = labels_at(positions, self.head.offsets[j], 1)
        known = labels != IGNORE
        entering = out.hidden[:, :, self.taps.index(self.head.taps[0])]
        states = self.head.trunk.norm(self.head.blocks[j](entering, positions.index, mask))[known]
        (scores,) = lm.output.score(states, labels[known][:, None])
        return cross_entropy(scores.float(), labels[known])
