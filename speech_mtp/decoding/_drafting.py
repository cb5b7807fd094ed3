"""What rules with a head have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from speech_mtp.decoding.base import DecodingRule
from speech_mtp.decoding.judge import Acceptance
from speech_mtp.decoding.payoff import Payoff
from speech_mtp.heads.base import MTPHead
from speech_mtp.lm.text_lm import TextState
from speech_mtp.types import Draft, LMOutput


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
        self.head, self.taps = head, head.taps
        self.acceptance = Acceptance.of(acceptance)
        self.lossless = self.acceptance.lossless
        self.payoff = Payoff(**payoff) if isinstance(payoff, Mapping) else payoff

    @staticmethod
    def supports(head: MTPHead) -> bool:
        """Adjacent offsets only: a leap needs the rule that looks back."""
        return head.adjacent

    @staticmethod
    def reach(head: MTPHead) -> int:
        """How many tokens in a row the head drafts."""
        return head.num_depths

    def begin(self, state: TextState) -> None:
        state.head = self.head.open(len(state.last), state.last.device, state.dtype)

    def read(self, state: TextState, out: LMOutput, tokens: Tensor, following: Tensor, lengths: Tensor) -> None:
        self.head.read(state.head, out.hidden, self.head.embed(following), lengths)
        state.head.last = self.head.embed(
            state.last[:, 0]
        )  # a row whose only token is its last has nothing to read yet
        if self.payoff is not None and self.payoff.running:
            self.payoff.finish(float(lengths.sum() / (lengths > 0).sum()))

    def rests(self) -> bool:
        """A step begins: whether it shall be a plain one."""
        self.paused = self.payoff is not None and not self.payoff.start()
        return self.paused

    def check_depth(self, depth: int) -> int:
        """``depth`` itself; ValueError if the head does not look so far ahead."""
        if depth > self.reach(self.head) and not self.head.recursive:
            raise ValueError(f"This head drafts {self.reach(self.head)} tokens; depth {depth} is too much.")
        return depth


def plain(state: TextState) -> Draft:
    """The draft of size one."""
    return Draft(state.last[:, None], torch.full_like(state.last, -1))


def full(head: MTPHead, scores: Tensor) -> Tensor:
    """Scores on the draft vocabulary ``[..., num_tokens]`` -> on the trunk's ``[..., V]``, -inf elsewhere."""
    if head.token_map is None:
        return scores
    wide = scores.new_full((*scores.shape[:-1], head.shape.vocab_size), float("-inf"))
    return wide.scatter(-1, head.token_map.expand(*scores.shape[:-1], -1), scores)
