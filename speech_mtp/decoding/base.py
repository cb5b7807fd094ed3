"""What a decoding rule is: it proposes a draft and judges it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from speech_mtp.decoding import sampling as noise
from speech_mtp.lm.decode import DecodeState, GroupLM
from speech_mtp.types import Draft, LMOutput, Sampling, Verdict


@dataclass(frozen=True)
class Law:
    """The distribution that tokens are drawn from: sampling settings bound to rows, masks included.

    ``seeds [B]`` int64. ``pick`` draws channel c of the position that follows the state, ``depth`` positions on.
    """

    lm: GroupLM
    sampling: Sampling
    seeds: Tensor

    def pick(self, state: DecodeState, depth: int, channel: int, logits: Tensor) -> Tensor:
        """``logits [B, V_c]`` -> tokens ``[B]``."""
        if channel == 0:
            mask = self.lm.layout.control_mask(state.pointer, state.units.lengths, state.units.complete, state.stalled)
            logits = logits.masked_fill(~mask, float("-inf"))
        elif (channel - 1) % len(self.lm.config.codebook_sizes) == 0:
            logits = noise.guard_repeats(logits, state.recent, self.sampling)
        adjusted = noise.adjust(logits, self.sampling)
        return noise.draw(adjusted, self.sampling, self.seeds, state.groups + depth, channel)


class DecodingRule(ABC):
    """``lossless`` rules give exactly the law of plain decoding."""

    lossless: bool

    @abstractmethod
    def propose(self, state: DecodeState, law: Law) -> Draft:
        """Hidden states and heads -> a draft whose node 0 is ``state.last``."""

    @abstractmethod
    def accept(self, state: DecodeState, draft: Draft, out: LMOutput, law: Law) -> Verdict:
        """The trunk's scores of the draft -> what is kept, and one sure position more."""


def seeds_of(sampling: Sampling, rows: int, device: torch.device) -> Tensor:
    """One seed for every row: a row alone has the seed it has in a batch only if the caller gives it one."""
    return torch.full((rows,), sampling.seed, dtype=torch.long, device=device)
