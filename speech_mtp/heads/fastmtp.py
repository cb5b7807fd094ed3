"""FastMTP (Tencent 2025, github.com/Tencent-BAC/FastMTP, report sections 3-4): one MTP module, applied recursively.

Step 1 reads the trunk's final state and the embedding of ``x_{t+1}``, step k its own output after the final norm and
the embedding of ``x_{t+k}``. All steps share one set of weights and one cache. Its training weighs step k with
``0.6 ** (k - 1)``, normalised, on answers that the trunk wrote itself.

The published training lets step k attend to *step-k* entries of all earlier positions, while decoding has step-1
entries there. ``attention: exact`` trains on what decoding does; ``published`` keeps the mismatch, for comparison.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speech_mtp.heads._sequential import MTPModule, RecursiveHead
from speech_mtp.heads.base import TrunkShape
from speech_mtp.nn.kv_cache import KVCache


class FastMTP(RecursiveHead):
    """``depth`` recursions. Without ``recursion`` only the first step is trained and :meth:`unroll` yields offset 2
    alone, while drafts still have ``depth`` tokens: a plain MTP module reused, the baseline of the report.

    ``order`` as in :class:`~speech_mtp.heads.deepseek.DeepSeek`; ``attention`` changes training alone.
    """

    def __init__(
        self,
        shape: TrunkShape,
        depth: int = 3,
        order: str = "hidden_first",
        attention: str = "exact",
        recursion: bool = True,
        taps: tuple[int, ...] = (-1,),
        feed: str = "last",
        draft_vocab: int | None = None,
    ) -> None:
        super().__init__(shape, depth if recursion else 1, taps, feed, draft_vocab)
        if attention not in ("exact", "published"):
            raise ValueError(f"attention is {attention!r}; it must be 'exact' or 'published'.")
        self.depth, self.drafts_as_trained = depth, attention == "exact"
        self.alone = self.drafts_as_trained
        self.module = MTPModule(shape, order)

    @property
    def num_depths(self) -> int:
        return self.depth

    def step(self, hidden: Tensor, x: Tensor, index: Tensor, mask: Tensor, cache: KVCache) -> Tensor:
        out: Tensor = self.module(hidden, x, index, mask, cache)
        return out

    def seen(self, past: Tensor, j: int) -> Tensor:
        if self.drafts_as_trained:
            return super().seen(past, j)
        return torch.cat([torch.zeros_like(past)] * j + [past], -1)
