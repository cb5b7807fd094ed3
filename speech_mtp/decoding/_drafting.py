"""What rules with a head have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from speech_mtp.decoding.base import DecodingRule, plain
from speech_mtp.decoding.judge import Acceptance
from speech_mtp.decoding.laws import Guesses, Law
from speech_mtp.decoding.payoff import Payoff
from speech_mtp.heads.base import MTPHead
from speech_mtp.types import Draft, Emitted, LMOutput

__all__ = ["Growth", "HeadRule", "plain"]


class HeadRule(DecodingRule):
    """A rule that drafts with ``head`` and keeps its state.

    ``acceptance`` is a kind or the fields of :class:`~speech_mtp.decoding.judge.Acceptance`; only ``exact`` is
    lossless. ``payoff``, or its settings, pauses drafting while it does not pay; the head goes on reading.
    """

    def __init__(
        self,
        head: MTPHead,
        acceptance: str | Mapping[str, Any] = "exact",
        payoff: Payoff | Mapping[str, Any] | None = None,
    ) -> None:
        if not self.supports(head):
            raise ValueError(f"The rule {type(self).__name__} cannot draft with {type(head).__name__} {head.offsets}.")
        self.head, self.taps, self.text_only = head, head.taps, head.needs_tokens
        self.acceptance = Acceptance.of(acceptance)
        self.payoff = Payoff(**payoff) if isinstance(payoff, Mapping) else payoff

    @staticmethod
    def supports(head: MTPHead) -> bool:
        """Adjacent offsets only: a leap needs the rule that looks back."""
        return head.adjacent

    @staticmethod
    def reach(head: MTPHead) -> int:
        """How many positions in a row the head drafts."""
        return head.num_depths

    def begin(self, rows: Any, law: Law) -> None:
        super().begin(rows, law)
        rows.head = self.head.open(len(rows.last), rows.last.device, law.lm.state_dtype)

    def read(self, rows: Any, law: Law, out: LMOutput, new: Emitted) -> None:
        x = law.lm.vectors(rows, new.tokens, new.place)
        self.head.read(rows.head, out.hidden, x, new.lengths)
        if self.payoff is not None and self.payoff.running:
            self.payoff.finish(float(new.lengths.sum() / (new.lengths > 0).sum()))

    def rests(self) -> bool:
        """A step begins: whether it shall be a plain one."""
        self.paused = self.payoff is not None and not self.payoff.start()
        return self.paused

    def check_depth(self, depth: int) -> int:
        """``depth`` itself; ValueError if the head does not look so far ahead."""
        if depth > self.reach(self.head) and not self.head.recursive:
            raise ValueError(f"This head drafts {self.reach(self.head)} tokens; depth {depth} is too much.")
        return depth


class Growth:
    """A draft as a head grows it, level by level: ``draft`` are the nodes added so far, node 0 first."""

    def __init__(self, head: MTPHead, rows: Any, law: Law) -> None:
        self.head, self.rows, self.law = head, rows, law
        self.draft = plain(rows)
        self.depth = 0
        self._newest: Tensor | None = None
        # Where it stands, a row may know more than when it came here (late text): its vector is made anew.
        rows.head.last = law.lm.node_vectors(rows, self.draft, 1)[:, 0]

    @property
    def count(self) -> int:
        """How many nodes have been added, node 0 aside."""
        return self.draft.parents.shape[1] - 1

    def add(self, tokens: Tensor, parents: Tensor) -> None:
        """Add nodes ``tokens [B, N, C]``, all at the next depth; ``parents [B, N]`` as :meth:`MTPHead.expand`."""
        self.depth, self._newest = self.depth + 1, parents
        tokens = torch.cat([self.draft.tokens, tokens], 1)
        self.draft = Draft(tokens, torch.cat([self.draft.parents, parents + 1], 1), depth=self.depth)

    def states(self) -> Tensor:
        """The head's states ``[B, N, D]`` that stand for the children of the newest nodes."""
        if self._newest is None:
            return self.head.root(self.rows.head)[:, None]
        x = self.law.lm.node_vectors(self.rows, self.draft, self._newest.shape[1])
        return self.head.expand(self.rows.head, x, self._newest)

    def guesses(self, states: Tensor, width: int, layer: int | None = None) -> Guesses:
        """The ``width`` likeliest children of the newest nodes by the ``states [B, N, D]`` that stand for them, read by
        output layer ``layer`` of the head (default: that of their depth)."""
        at = self.depth if layer is None else layer
        return self.law.guesses(self.rows, self.draft, self.head, states, self.depth, at, width)
