"""L-MTP (Liu et al. 2025, arXiv:2505.17505): heads that leap over positions; states of the past fill the gaps.

With stride k, head j (from 1) predicts ``x_{t+kj+1}``; the rule ``leap`` reads each head also at the k - 1 states
before ``h_t`` and so drafts every token from ``x_{t+2}`` to the farthest. The heads are Medusa's. Unlike the released
code the stride has one home, the offsets: the window of past states and the rule's order are derived from them.
"""

from __future__ import annotations

from speech_mtp.heads._residual import ResidualHead
from speech_mtp.heads.base import TrunkShape


class Leap(ResidualHead):
    """``num_heads`` heads, ``stride`` positions apart: offsets (3, 5, 7) by default, (2, 3, 4) with a stride of 1.

    ``private`` gives each its own unembedding, started from the trunk's at :meth:`bind`. Raises ValueError for a stride
    below 1.
    """

    def __init__(
        self,
        shape: TrunkShape,
        num_heads: int = 3,
        stride: int = 2,
        num_layers: int = 1,
        private: bool = False,
        taps: tuple[int, ...] = (-1,),
        feed: str = "last",
        draft_vocab: int | None = None,
    ) -> None:
        if stride < 1:
            raise ValueError(f"stride is {stride}; heads leap at least one position.")
        offsets = tuple(stride * j + 1 for j in range(1, 1 + num_heads))
        super().__init__(shape, offsets, num_layers, private, taps, feed, draft_vocab)
