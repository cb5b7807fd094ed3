"""Medusa (Cai et al. 2024, arXiv:2401.10774): independent residual heads on the trunk's last state.

Head j predicts ``x_{t+2+j}``: ``num_layers`` blocks ``x + SiLU(W x + b)``, then an unembedding, the trunk's own or a
private copy. Unlike the released code, every block has its own weights, and W and b both start at zero, so that an
untrained head is exactly the trunk's next-token layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp.heads.base import Binding, ParallelHead, TrunkShape


class ResBlock(nn.Module):
    """``x + SiLU(W x + b)``, the identity at the start."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.silu(self.linear(x))


class Medusa(ParallelHead):
    """``num_heads`` heads. ``private`` gives each its own unembedding, started from the trunk's at :meth:`bind`."""

    started: Tensor

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
        self.private = (
            nn.ModuleList(nn.Linear(shape.dim, self.num_tokens, bias=False) for _ in range(num_heads))
            if private
            else None
        )
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def bind(self, binding: Binding) -> None:
        super().bind(binding)
        if self.private is not None and not self.started:
            rows = binding.weight if self.token_map is None else binding.weight[self.token_map]
            with torch.no_grad():
                for layer in self.private:
                    layer.get_parameter("weight").copy_(rows)
            self.started.fill_(True)  # a loaded checkpoint says so too, and keeps its weights

    def ahead(self, hidden: Tensor, j: int) -> Tensor:
        x = self.blocks[j](hidden)
        if self.private is None:
            return self.unembed(x)
        out: Tensor = self.private[j](x)
        return out
