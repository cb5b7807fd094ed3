"""Medusa (Cai et al. 2024, arXiv:2401.10774): independent residual heads on the trunk's last state.

Head j predicts ``x_{t+2+j}``: ``num_layers`` blocks ``x + SiLU(W x + b)``, then an unembedding, the trunk's own or a
private copy. Unlike the released code, every block has its own weights, and W and b both start at zero, so that an
untrained head is exactly the trunk's next-token layer.
"""

from __future__ import annotations

from torch import Tensor, nn

from speech_mtp.heads.base import Binding, ParallelHead, PrivateUnembedding, TrunkShape
from speech_mtp.nn.residual import ResBlock


class Medusa(ParallelHead):
    """``num_heads`` heads. ``private`` gives each its own unembedding, started from the trunk's at :meth:`bind`."""

    identity_at_start = True

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
        super().__init__(shape, tuple(range(2, 2 + num_heads)), taps, feed, draft_vocab)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(ResBlock(shape.dim) for _ in range(num_layers))) for _ in range(num_heads)
        )
        self.private = PrivateUnembedding(num_heads, shape.dim, self.num_tokens) if private else None

    def bind(self, binding: Binding) -> None:
        super().bind(binding)
        if self.private is not None:
            self.private.start(self.unembedding())

    def ahead(self, hidden: Tensor, j: int) -> Tensor:
        x = self.blocks[j](hidden)
        if self.private is None:
            return self.unembed(x)
        out: Tensor = self.private[j](x)
        return out
