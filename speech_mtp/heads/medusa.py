"""Medusa (Cai et al. 2024, arXiv:2401.10774): independent residual heads on the trunk's last state.

Head j predicts ``x_{t+2+j}``: ``num_layers`` blocks ``x + SiLU(W x + b)``, then an unembedding, the trunk's own or a
private copy. Unlike the released code, every block has its own weights, and W and b both start at zero, so that an
untrained head is exactly the trunk's next-token layer.
"""

from __future__ import annotations

from speech_mtp.heads._residual import ResidualHead
from speech_mtp.heads.base import TrunkShape


class Medusa(ResidualHead):
    """``num_heads`` heads. ``private`` gives each its own unembedding, started from the trunk's at :meth:`bind`."""

    def __init__(
        self,
        shape: TrunkShape,
        num_heads: int = 4,
        num_layers: int = 1,
        private: bool = False,
        taps: tuple[int, ...] = (-1,),
        feed: str = "last",
        draft_vocab: int | None = None,
    ) -> None:
        super().__init__(shape, tuple(range(2, 2 + num_heads)), num_layers, private, taps, feed, draft_vocab)
