"""Prompt lookup: what followed the row's newest tokens when they last appeared is the draft. No head.

As in Saxena's prompt lookup decoding (2023), over everything the row has read and said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from speech_mtp.decoding._drafting import plain
from speech_mtp.decoding.base import DecodingRule
from speech_mtp.decoding.judge import Acceptance, judge
from speech_mtp.decoding.laws import TextLaw
from speech_mtp.lm.text_lm import TextState
from speech_mtp.types import Draft, LMOutput, Verdict


class Lookup(DecodingRule):
    """Up to ``depth`` tokens after the latest earlier place that ends in the same ``max_ngram`` tokens, or as many of
    them as do match, at least ``min_ngram``; a place so late that its continuation is the end itself repeats it.

    Rows without such a place draft nothing.
    """

    def __init__(
        self,
        depth: int = 8,
        max_ngram: int = 3,
        min_ngram: int = 1,
        acceptance: str | Mapping[str, Any] = "exact",
    ) -> None:
        if depth < 1 or not 1 <= min_ngram <= max_ngram:
            raise ValueError(f"depth {depth}, min_ngram {min_ngram} and max_ngram {max_ngram} must rise from one.")
        self.depth, self.max_ngram, self.min_ngram = depth, max_ngram, min_ngram
        self.acceptance = Acceptance.of(acceptance)
        self.lossless = self.acceptance.lossless

    def propose(self, state: TextState, law: TextLaw) -> Draft:
        start, found = latest_match(state.tokens, state.lengths, self.max_ngram, self.min_ngram)
        if not bool(found.any()):
            return plain(state)
        ahead = torch.arange(self.depth, device=start.device)
        period = (state.lengths - start)[:, None].clamp(min=1)
        drafted = state.tokens.gather(1, start[:, None] + ahead % period)
        parents = torch.where(found[:, None], ahead, -1)
        return Draft(
            torch.cat([state.last, drafted], 1)[..., None], torch.cat([torch.full_like(state.last, -1), parents], 1)
        )

    def accept(self, state: TextState, draft: Draft, out: LMOutput, law: TextLaw) -> Verdict:
        return judge(self.acceptance, state, draft, out, law)


def latest_match(tokens: Tensor, lengths: Tensor, most: int, least: int) -> tuple[Tensor, Tensor]:
    """Where the newest n-gram of each row appeared before: the longest of ``least`` to ``most``, its latest place.

    ``tokens [B, S]`` of which ``lengths [B]`` count -> the position ``[B]`` after the match (0 without), and whether
    there is one ``[B]``.
    """
    s = tokens.shape[1]
    at = torch.arange(s, device=tokens.device)
    good = at < lengths[:, None]  # position `at` comes after the n tokens that are compared
    best = torch.zeros_like(tokens)
    for n in range(1, most + 1):
        newest = tokens.gather(1, (lengths - n).clamp(min=0)[:, None])
        good = good & (at >= n) & (tokens.roll(n, 1) == newest)
        if n >= least:
            best = torch.where(good, n * s + at, best)
    value, _ = best.max(1)
    return value % s, value > 0
