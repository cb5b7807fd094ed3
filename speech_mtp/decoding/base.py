"""What a decoding rule is: it proposes a draft and judges it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speech_mtp.types import Draft, LMOutput, Sampling, Verdict

TARGET, ACCEPT, DRAFT = range(3)
"""Purposes of noise: a draw from the trunk's law or what is left of it, a test of acceptance, a drafted token."""


@dataclass(frozen=True)
class Law(ABC):
    """The distribution that tokens are drawn from: a model's output layer and sampling settings bound to rows.

    ``seeds [B]`` int64.
    """

    lm: Any
    sampling: Sampling
    seeds: Tensor

    @abstractmethod
    def pick(self, state: Any, depth: int, channel: int, logits: Tensor) -> Tensor:
        """Draw channel ``channel`` of the position that follows the state, ``depth`` positions on.

        ``logits [B, V_c]`` -> tokens ``[B]``.
        """


class DecodingRule(ABC):
    """``lossless`` rules give exactly the law of plain decoding.

    ``taps`` are the layers of the trunk whose states the rule's head reads (see :class:`speech_mtp.lm.text_lm.TextLM`).
    ``paused`` says that the newest draft was left out because drafting did not pay.
    """

    lossless: bool = True
    taps: tuple[int, ...] = (-1,)
    paused: bool = False

    @abstractmethod
    def propose(self, state: Any, law: Any) -> Draft:
        """Hidden states and heads -> a draft whose node 0 is ``state.last``."""

    @abstractmethod
    def accept(self, state: Any, draft: Draft, out: LMOutput, law: Any) -> Verdict:
        """The trunk's scores of the draft -> what is kept, and one sure position more."""

    def begin(self, state: Any) -> None:
        """A decode starts: make the head's state, if there is a head."""
        return

    def read(self, state: Any, out: LMOutput, tokens: Tensor, following: Tensor, lengths: Tensor) -> None:
        """Committed positions: states ``out [B, T, taps, D]`` of ``tokens [B, T]``, the token ``following [B, T]`` each
        one, ``lengths [B]`` of them per row."""
        return


def sent(numbers: Sequence[int], device: torch.device) -> Tensor:
    """``numbers`` on ``device``, int64. From pinned memory, so that a GPU need not have caught up for it."""
    if device.type != "cuda":
        return torch.tensor(numbers, device=device)
    return torch.tensor(numbers, pin_memory=True).to(device, non_blocking=True)


def seeds_of(sampling: Sampling, rows: int, device: torch.device) -> Tensor:
    """One seed for every row: a row alone has the seed it has in a batch only if the caller gives it one."""
    return torch.full((rows,), sampling.seed, dtype=torch.long, device=device)
