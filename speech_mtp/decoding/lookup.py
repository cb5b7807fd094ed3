"""Prompt lookup: what followed the row's newest tokens when they last appeared is the draft. No head.

As in Saxena's prompt lookup decoding (2023), over everything the row has read and said.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from speech_mtp.decoding.base import DecodingRule, plain
from speech_mtp.decoding.judge import Acceptance
from speech_mtp.decoding.laws import Law
from speech_mtp.types import Draft


class Lookup(DecodingRule):
    """Up to ``depth`` tokens after the latest earlier place that ends in the same ``max_ngram`` tokens, or as many of
    them as do match, at least ``min_ngram``; a place so late that its continuation is the end itself repeats it.

    Rows without such a place draft nothing.
    """

    text_only = True

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

    def propose(self, rows: Any, law: Law) -> Draft:
        start, found = latest_match(rows.tokens, rows.place.position, self.max_ngram, self.min_ngram)
        # Elsewhere than on a CPU, to look would cost more than nodes that only fill the rows.
        if found.device.type == "cpu" and not bool(found.any()):
            return plain(rows)
        drafted = continuation(rows.tokens, rows.place.position, start, self.depth)
        parents = torch.where(found[:, None], torch.arange(self.depth, device=start.device), -1)
        node = plain(rows)
        return Draft(torch.cat([node.tokens, drafted[..., None]], 1), torch.cat([node.parents, parents], 1))


def latest_match(tokens: Tensor, lengths: Tensor, most: int, least: int) -> tuple[Tensor, Tensor]:
    """Where the newest n-gram of each row appeared before: the longest of ``least`` to ``most``, its latest place.

    Arguments and position as in :func:`longest_match`, and whether there is a match ``[B]``.
    """
    start, length = longest_match(tokens, lengths, most, least)
    return start, length > 0


def longest_match(tokens: Tensor, lengths: Tensor, most: int, least: int) -> tuple[Tensor, Tensor]:
    """The same with its length: ``tokens [B, S]`` of which ``lengths [B]`` count -> the position ``[B]`` after the
    match and how many tokens ``[B]`` match, both 0 without."""
    s = tokens.shape[1]
    back = lengths[:, None] - torch.arange(most + 1, 0, -1, device=tokens.device)
    # Negative numbers are no tokens: before the text nothing matches, and no match is longer than `most`.
    newest = torch.where(back >= 0, tokens.gather(1, back.clamp(min=0)), -2)
    newest[:, 0] = -2
    before = F.pad(tokens, (most + 1, 0), value=-1).unfold(1, most + 1, 1)[:, :s]  # [B, S, most + 1]
    length = (before == newest[:, None]).flip(-1).to(torch.uint8).argmin(-1)  # the first that differs, from the end
    at = torch.arange(s, device=tokens.device)
    value, _ = torch.where((length >= least) & (at < lengths[:, None]), length * s + at, 0).max(1)
    return value % s, value // s


def continuation(tokens: Tensor, lengths: Tensor, start: Tensor, depth: int) -> Tensor:
    """The tokens ``[B, depth]`` from the positions ``start [B]`` on, over and over if the text ends before."""
    period = (lengths - start)[:, None].clamp(min=1)
    ahead = torch.arange(depth, device=start.device)
    return tokens.gather(1, start[:, None] + ahead % period)
