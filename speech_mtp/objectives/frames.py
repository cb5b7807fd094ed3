"""A curriculum over the frames of a position of speech: how many of each group's frames are learnt at which time.

The published curriculum (Aynetdinov and Akbik, arXiv:2505.22757) adds tokens ahead, one after another; here a position
of speech holds a group of frames, and the k of a phase is how many of them count, the first ones. What a phase leaves
out gets no loss; groups are as long as ever. The control token counts always.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from speech_mtp.lm.causal_lm import CausalLM
from speech_mtp.lm.direct import DirectLM
from speech_mtp.lm.group_lm import GroupLM
from speech_mtp.objectives.base import Course, Objective, Scoring
from speech_mtp.objectives.curricula import Curriculum, Spec
from speech_mtp.objectives.ntp import channel_terms
from speech_mtp.types import LMOutput, Positions


class Frames(Objective, nn.Module):
    """Terms ``control`` and ``stream0``, ``stream1``, ... as those of ``ntp``, each the mean over the frames of the
    phase, weighted where the phase has weights. Raises ValueError at :meth:`bind_speech` where the curriculum looks
    beyond the group."""

    for_speech = True
    curriculum: Curriculum

    def __init__(self, curriculum: Spec = "forward") -> None:
        super().__init__()
        self.spec = curriculum

    @property
    def schedule(self) -> Curriculum:
        return self.curriculum

    def bind(self, lm: CausalLM, course: Course) -> None:
        raise ValueError(
            "The objective 'frames' is for speech; of text, 'parallel_heads' and others have a curriculum."
        )

    def bind_speech(self, lm: GroupLM, course: Course) -> None:
        if isinstance(lm, DirectLM):
            raise ValueError(
                "The direct form learns its text too, by the objective 'direct'; 'frames' has no text term."
            )
        self.curriculum = Curriculum(self.spec, course.length)
        self.curriculum.bind(course.length, course.steps)

    def terms(self, lm: Scoring, out: LMOutput, positions: Positions) -> Iterator[tuple[str, Tensor]]:
        phase, names = self.curriculum.phase, lm.loss_names
        frames = [*(phase.weights or [1.0] * phase.k), *[0.0] * len(names)]
        streams = len(set(names)) - 1
        yield from channel_terms(lm, out, positions, [1.0, *(frames[c // streams] for c in range(len(names) - 1))])
