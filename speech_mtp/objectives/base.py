"""Named loss terms of language models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from speech_mtp.heads.base import MTPHead
from speech_mtp.lm.causal_lm import CausalLM
from speech_mtp.lm.group_lm import GroupLM
from speech_mtp.lm.output import OutputLayer
from speech_mtp.nn.visibility import Rule
from speech_mtp.objectives.curricula import Curriculum
from speech_mtp.types import LMOutput, Positions


class Scoring(Protocol):
    """A language model as its loss sees it: an output layer, and the term that each of its channels counts in."""

    @property
    def output(self) -> OutputLayer: ...
    @property
    def loss_names(self) -> tuple[str, ...]: ...


@dataclass
class Inputs:
    """What a trunk of text reads. ``sees`` says who looks at whom (None: each position at what stands before it in its
    segment); ``vectors [B, T, D]`` are its input (None: the embeddings of the tokens)."""

    positions: Positions
    sees: Rule | None = None
    vectors: Tensor | None = None


@dataclass(frozen=True)
class Course:
    """What an objective may know of the training of a trunk: ``length`` of the rows in tokens, and the number of
    ``steps`` (None: nobody knows)."""

    length: int
    steps: int | None = None


class Objective(ABC):
    """Yields ``(name, term)`` scalars; sums belong to the training loop.

    An objective that learns parameters of its own is a ``torch.nn.Module`` too. Its life in the training of a trunk::

        objective.bind(lm, course)              once: parameters of the trunk's sizes are made, settings are checked
        objective.at_step(number)               before every step
        inputs = objective.prepare(lm, rows)    what the trunk reads
        objective.terms(lm, out, ...)           of its states, each to be multiplied by objective.weight(name)
        objective.observe(number, loss)         after every measurement of the held-out loss of the next token
        objective.heads()                       at the end: what can draft
    """

    taps: tuple[int, ...] = (-1,)
    """The layers of the trunk whose states :meth:`terms` is given; the top comes last."""

    trains_trunk = True
    """Whether the trunk learns at this step, or the objective's own parameters alone."""

    for_speech = False
    """Whether a speech LM can learn by it."""

    @property
    def schedule(self) -> Curriculum | None:
        """How far the objective looks ahead at which step, where that may change."""
        return None

    def bind(self, lm: CausalLM, course: Course) -> None:
        """Make what depends on the trunk's sizes. Raises ValueError where the settings do not fit ``lm`` or the
        course."""
        if self.schedule is not None:
            self.schedule.bind(course.length, course.steps)

    def bind_speech(self, lm: GroupLM, course: Course) -> None:
        """As :meth:`bind` for a speech LM; ``course.length`` is that of a group, in frames. Raises ValueError for an
        objective of text."""
        if not self.for_speech:
            raise ValueError(
                f"The objective {type(self).__name__} is for trunks of text; for speech there are 'ntp' and 'frames'."
            )

    def at_step(self, number: int) -> None:
        """Step ``number``, counted from 0, is about to be made."""
        if self.schedule is not None:
            self.schedule.at_step(number)

    def observe(self, number: int, loss: float) -> None:
        """The held-out ``loss`` of the next token in nats, ``number`` steps from the start."""
        if self.schedule is not None:
            self.schedule.observe(number, loss)

    def weight(self, name: str) -> float:
        """What the term ``name`` counts in the sum at this step."""
        return 1.0

    def teachers(self) -> list[Path]:
        """The folders of other trunks that it reads; their tokenizers must be the documents' own."""
        return []

    def heads(self) -> dict[str, tuple[MTPHead, dict[str, Any]]]:
        """Draft heads that the trunk was trained with, each with the settings it was built from."""
        return {}

    def prepare(self, lm: CausalLM, positions: Positions) -> Inputs:
        """What the trunk is given of packed documents: the plain rows. Objectives may insert positions here, with
        vectors, labels and a rule of their own."""
        return Inputs(positions)

    @abstractmethod
    def terms(self, lm: Scoring, out: LMOutput, positions: Positions) -> Iterator[tuple[str, Tensor]]:
        """``out`` are the trunk's hidden states of ``positions``, which carry the labels.

        A term may be back-propagated before the next is asked for, so that what only it needs can go.
        """
