"""Output layers: a hidden state -> the tokens of the next position, one distribution per channel.

``linear`` and ``mlp`` judge every channel by itself (SLM-Decoupled-MTP); ``depth`` goes channel by channel, each
seeing the tokens chosen before it in the same position, so a group of many frames stays coherent (the chain rule, as
in the depth transformers of Moshi and CSM, but with a running sum in place of attention, after NADE, Larochelle and
Murray 2011: one small product per channel and no second cache). :mod:`speech_mtp.lm.outputs` knows them by name.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pick = Callable[[int, Tensor], Tensor]
"""``pick(channel, logits [N, V_c]) -> tokens [N]``: draws one token per row."""


class OutputLayer(nn.Module, ABC):
    """Scores the C channels of a position."""

    def __init__(self, channel_sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.channel_sizes = tuple(channel_sizes)

    @abstractmethod
    def score(self, hidden: Tensor, tokens: Tensor) -> list[Tensor]:
        """Teacher-forced: ``hidden [B, T, D]``, ``tokens [B, T, C]`` -> a list over channels of ``[B, T, V_c]``."""

    @abstractmethod
    def sample(self, hidden: Tensor, pick: Pick) -> Tensor:
        """``hidden [N, D]`` -> tokens ``[N, C]``, drawn channel by channel through ``pick``."""


class Parallel(OutputLayer):
    """Channels are independent given the hidden state: ``mlp`` False is one linear map each."""

    def __init__(self, dim: int, channel_sizes: tuple[int, ...], mlp: bool = False, width: int = 256) -> None:
        super().__init__(channel_sizes)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, width), nn.SiLU(), nn.Linear(width, size)) if mlp else nn.Linear(dim, size)
            for size in channel_sizes
        )

    def score(self, hidden: Tensor, tokens: Tensor) -> list[Tensor]:
        return [head(hidden) for head in self.heads]

    def sample(self, hidden: Tensor, pick: Pick) -> Tensor:
        return torch.stack([pick(c, head(hidden)) for c, head in enumerate(self.heads)], -1)


class Depth(OutputLayer):
    """Channels in order, each given the sum of projected embeddings of the channels before it."""

    def __init__(self, dim: int, channel_sizes: tuple[int, ...], width: int = 256, narrow: int = 96) -> None:
        super().__init__(channel_sizes)
        self.tables = nn.ModuleList(nn.Embedding(size, narrow) for size in channel_sizes[:-1])
        self.project = nn.ModuleList(nn.Linear(narrow, dim, bias=False) for _ in channel_sizes[:-1])
        self.norms = nn.ModuleList(nn.RMSNorm(dim) for _ in channel_sizes)
        self.up = nn.ModuleList(nn.Linear(dim, width) for _ in channel_sizes)
        self.down = nn.ModuleList(nn.Linear(width, size) for size in channel_sizes)

    def _logits(self, c: int, x: Tensor) -> Tensor:
        return self.down[c](F.silu(self.up[c](self.norms[c](x))))

    def score(self, hidden: Tensor, tokens: Tensor) -> list[Tensor]:
        x, scores = hidden, []
        for c in range(len(self.channel_sizes)):
            scores.append(self._logits(c, x))
            if c + 1 < len(self.channel_sizes):
                x = x + self.project[c](self.tables[c](tokens[..., c].clamp(min=0)))
        return scores

    def sample(self, hidden: Tensor, pick: Pick) -> Tensor:
        x, tokens = hidden, []
        for c in range(len(self.channel_sizes)):
            tokens.append(pick(c, self._logits(c, x)))
            if c + 1 < len(self.channel_sizes):
                x = x + self.project[c](self.tables[c](tokens[-1]))
        return torch.stack(tokens, -1)
