"""Named loss terms of language models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from speech_mtp.lm.causal_lm import CausalLM
from speech_mtp.lm.output import OutputLayer
from speech_mtp.nn.visibility import Rule
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


class Objective(ABC):
    """Yields ``(name, term)`` scalars; weights and sums belong to the training loop.

    An objective that learns parameters of its own is a ``torch.nn.Module`` too.
    """

    def prepare(self, lm: CausalLM, positions: Positions) -> Inputs:
        """What the trunk is given of packed documents: the plain rows. Objectives may insert positions here, with
        vectors, labels and a rule of their own."""
        return Inputs(positions)

    @abstractmethod
    def terms(self, lm: Scoring, out: LMOutput, positions: Positions) -> Iterator[tuple[str, Tensor]]:
        """``out`` are the trunk's hidden states of ``positions``, which carry the labels.

        A term may be back-propagated before the next is asked for, so that what only it needs can go.
        """
