"""What a decoding rule is: it proposes a draft and judges it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from speech_mtp.decoding.judge import Acceptance
from speech_mtp.decoding.laws import Law
from speech_mtp.types import Draft, Emitted, LMOutput, Verdict


class DecodingRule(ABC):
    """The same rule drafts text tokens and groups of speech tokens, unless it needs text.

    ``lossless`` rules give exactly what plain decoding gives: the same tokens for the same seed, or, where the rule
    says so, the same distribution. ``taps`` are the layers of the trunk whose states the rule's head reads (see
    :class:`speech_mtp.lm.text_lm.TextLM`). ``paused`` says that the newest draft was left out because drafting did not
    pay.
    """

    acceptance = Acceptance()
    taps: tuple[int, ...] = (-1,)
    paused: bool = False
    text_only: bool = False
    """Whether the rule looks at the text itself, or at which token came before."""

    @property
    def lossless(self) -> bool:
        return self.acceptance.lossless

    @abstractmethod
    def propose(self, rows: Any, law: Law) -> Draft:
        """Hidden states and heads -> a draft whose node 0 is ``rows.last``."""

    def accept(self, rows: Any, draft: Draft, out: LMOutput, law: Law) -> Verdict:
        """The trunk's states of the draft's nodes -> what is kept, and one sure position more."""
        return self.acceptance.verdict(rows, draft, out, law)

    def begin(self, rows: Any, law: Law) -> None:
        """Rows that have read nothing: make the head's state, if there is a head. Raises ValueError for rows of speech
        if the rule, or its acceptance, is for text."""
        if rows.last.shape[-1] == 1:
            return
        if self.text_only:
            raise ValueError(f"The rule {type(self).__name__} drafts text here, not speech.")
        if not self.lossless:
            kind = self.acceptance.kind
            raise ValueError(f"Acceptance {kind!r} is for text; groups of speech tokens are accepted exactly.")

    def read(self, rows: Any, law: Law, out: LMOutput, new: Emitted) -> None:
        """Committed positions: states ``out [B, T, taps, D]``, and the position ``new`` that follows each."""
        return


def plain(rows: Any) -> Draft:
    """The draft of size one."""
    parents = torch.full((len(rows.last), 1), -1, device=rows.last.device)
    return Draft(rows.last[:, None], parents)


def sent(numbers: Sequence[int], device: torch.device) -> Tensor:
    """``numbers`` on ``device``, int64. From pinned memory, so that a GPU need not have caught up for it."""
    if device.type != "cuda":
        return torch.tensor(numbers, device=device)
    return torch.tensor(numbers, pin_memory=True).to(device, non_blocking=True)
