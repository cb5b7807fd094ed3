"""EAGLE (Li et al. 2024, arXiv:2401.15077): autoregression over the trunk's final states ("features").

From the feature ``f_t`` and the embedding of ``x_{t+1}`` one decoder layer predicts ``f_{t+1}``, which the trunk's own,
frozen output layer scores for ``x_{t+2}``. The layer has no norm before its attention and none at the end, so that its
output is a feature and can be fed back. EAGLE-2 (arXiv:2406.16858) has the same weights and another tree.

The published training sees true features only (depth 1) and adds noise to them; its loss is smooth L1 between
predicted and true feature (:meth:`Eagle.regress`) plus 0.1 of the cross-entropy to the trunk's law.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from speech_mtp.heads._sequential import RecursiveHead
from speech_mtp.heads.base import TrunkShape, shifted
from speech_mtp.nn.kv_cache import KVCache
from speech_mtp.nn.transformer import Attention, SwiGLU
from speech_mtp.types import LMOutput


class FeatureLayer(nn.Module):
    """A Llama block without the norm before its attention."""

    def __init__(self, shape: TrunkShape) -> None:
        super().__init__()
        self.self_attn = Attention(shape.block())
        self.post_attention_layernorm = nn.RMSNorm(shape.dim, eps=shape.rms_norm_eps)
        self.mlp = SwiGLU(shape.dim, shape.intermediate_size)

    def forward(self, x: Tensor, index: Tensor, mask: Tensor, cache: KVCache) -> Tensor:
        x = x + self.self_attn(x, index, mask, cache)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Eagle(RecursiveHead):
    """``depth`` steps: the first from true features, the others from the head's own. With several taps the first
    reads their mixture; what is predicted is the final state all the same."""

    def __init__(
        self,
        shape: TrunkShape,
        depth: int = 5,
        taps: tuple[int, ...] = (-1,),
        feed: str = "last",
        draft_vocab: int | None = None,
    ) -> None:
        super().__init__(shape, depth, taps, feed, draft_vocab)
        self.fc = nn.Linear(2 * shape.dim, shape.dim)
        self.layer = FeatureLayer(shape)

    def step(self, hidden: Tensor, x: Tensor, index: Tensor, mask: Tensor, cache: KVCache) -> Tensor:
        out: Tensor = self.layer(self.fc(torch.cat([x, hidden], -1)), index, mask, cache)
        return out

    def regress(self, out: LMOutput, x: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted features and their targets, both ``[B, T, D]``: entry t is that of position t + 1, and the last one
        means nothing. The prediction is what :meth:`unroll_states` yields first.

        Raises ValueError if ``out`` does not hold the trunk's final states.
        """
        if out.final is None and self.taps[-1] != -1:
            raise ValueError(f"Features are the trunk's final states, but the last tap is {self.taps[-1]}.")
        return next(self.walk(out, x)), shifted(out.top, 1).detach()
