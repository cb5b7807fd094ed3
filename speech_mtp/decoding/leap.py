"""Drafting with heads that leap, by looking back (L-MTP, Liu et al. 2025, arXiv:2505.17505, section 3.2)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from speech_mtp.decoding.chain import Chain
from speech_mtp.heads.base import MTPHead, ParallelHead, source
from speech_mtp.lm.text_lm import TextState


class Leap(Chain):
    """Every token from ``x_{t+2}`` to ``x_{t+offsets[-1]}`` as one chain, the skipped ones from older states; lossless.

    Judged as in :class:`~speech_mtp.decoding.chain.Chain`. With adjacent offsets it drafts the same tokens.
    """

    head: ParallelHead

    @staticmethod
    def supports(head: MTPHead) -> bool:
        """Predictions that depend on trunk states alone, with gaps that the window of past states fills."""
        gaps = [far - near for near, far in pairwise((1, *head.offsets))]
        return isinstance(head, ParallelHead) and max(gaps) <= head.window

    @staticmethod
    def reach(head: MTPHead) -> int:
        return head.offsets[-1] - 1

    def ahead(self, state: TextState, depth: int, token: Tensor) -> tuple[int, Tensor]:
        j, age = source(self.head.offsets, depth + 2)
        return j, self.head.at_age(state.head, j, age)
