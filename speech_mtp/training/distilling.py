"""What a stream of codes learns from a recogniser's features: the continuous distillation of SpeechTokenizer.

Every dimension of the features is followed over time, so that the stream must tell *when* the recogniser hears what
(Zhang et al. 2023, arXiv:2308.16692, equation 2).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class FeatureGuess(nn.Module):
    """Values of single frames ``[B, F, D]`` -> a guess of the recogniser's features ``[B, F, K]``."""

    def __init__(self, dim_in: int, features: int, dim: int = 128) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim_in, dim), nn.GELU(), nn.Linear(dim, features))

    def forward(self, values: Tensor) -> Tensor:
        out: Tensor = self.net(values)
        return out.float()


def distillation(guess: Tensor, features: Tensor, mask: Tensor) -> Tensor:
    """``-log sigmoid(cos)`` of each dimension of ``guess`` and ``features [B, F, K]`` over the frames of ``mask
    [B, F, 1]``, the mean over dimensions and rows."""
    alike = F.cosine_similarity(guess * mask, features * mask, dim=1)
    return -F.logsigmoid(alike).mean()
