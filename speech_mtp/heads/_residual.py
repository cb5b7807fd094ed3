"""What Medusa and leaping heads share: residual blocks on a trunk state and an output layer. Offsets differ."""

from __future__ import annotations

from torch import Tensor, nn

from speech_mtp.heads.base import ParallelHead, PrivateUnembedding, TrunkShape
from speech_mtp.nn.residual import ResBlock


class ResidualHead(ParallelHead):
    """``num_layers`` blocks for every offset. ``private`` gives each its own output layer, at first the trunk's."""

    identity_at_start = True

    def __init__(
        self,
        shape: TrunkShape,
        offsets: tuple[int, ...],
        num_layers: int,
        private: bool,
        taps: tuple[int, ...],
        feed: str,
        draft_vocab: int | None,
    ) -> None:
        super().__init__(shape, offsets, taps, feed, draft_vocab)
        self.blocks = nn.ModuleList(nn.Sequential(*(ResBlock(shape.dim) for _ in range(num_layers))) for _ in offsets)
        if private:
            self.private = PrivateUnembedding(len(offsets), shape.dim, self.num_tokens)

    def ahead(self, hidden: Tensor, j: int) -> Tensor:
        out: Tensor = self.blocks[j](hidden)
        return out
