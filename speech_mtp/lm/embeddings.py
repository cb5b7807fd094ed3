"""What a speech position is made of: the previous group (fused), the text around the pointer, and the voice."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp.types import TextUnits


class GroupFusion(nn.Module):
    """Tokens of a group ``[B, T, C]`` -> one vector ``[B, T, D]``.

    ``mean`` averages the channels' embeddings (the released code of SLM-Decoupled-MTP, arXiv:2506.12537); ``concat``
    joins narrower ones and fuses them by an MLP (that paper's text).
    """

    def __init__(self, channel_sizes: tuple[int, ...], dim: int, kind: str = "concat", narrow: int = 64) -> None:
        super().__init__()
        if kind not in ("mean", "concat"):
            raise ValueError(f"fusion is {kind!r}; it must be 'mean' or 'concat'.")
        self.kind = kind
        width = dim if kind == "mean" else narrow
        self.tables = nn.ModuleList(nn.Embedding(size + 1, width) for size in channel_sizes)
        if kind == "concat":
            self.mlp = nn.Sequential(nn.Linear(width * len(channel_sizes), dim), nn.GELU(), nn.Linear(dim, dim))

    def forward(self, tokens: Tensor) -> Tensor:
        parts = [table(tokens[..., c]) for c, table in enumerate(self.tables)]
        return torch.stack(parts).mean(0) if self.kind == "mean" else self.mlp(torch.cat(parts, -1))


class UnitEncoder(nn.Module):
    """Text units -> ``[B, U, E]``: phoneme, stress, word start, and the backbone's state of the unit's token.

    ``blank`` is the share of states blanked while training: they tell sentences apart, so they invite memorising.
    """

    def __init__(
        self, num_phonemes: int, backbone_dim: int, dim: int, hidden_share: int = 64, blank: float = 0.0
    ) -> None:
        super().__init__()
        self.blank = blank
        self.phoneme = nn.Embedding(num_phonemes, dim)
        self.stress = nn.Embedding(3, dim)
        self.word_start = nn.Embedding(2, dim)
        self.hidden = nn.Linear(backbone_dim, hidden_share)
        self.mlp = nn.Sequential(nn.Linear(dim + hidden_share, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, units: TextUnits) -> Tensor:
        identity = self.phoneme(units.phoneme) + self.stress(units.stress) + self.word_start(units.word_start)
        states = F.layer_norm(units.hidden.to(identity.dtype), units.hidden.shape[-1:])
        if self.training and self.blank:
            states = states * (torch.rand_like(states[..., :1]) >= self.blank)
        states = self.hidden(states)
        token = units.token[..., None].expand(-1, -1, states.shape[-1])
        return self.mlp(torch.cat([identity, states.gather(1, token)], -1))


class Window(nn.Module):
    """The units around a pointer -> one vector: ``past`` behind it, the unit itself, ``ahead`` in front."""

    def __init__(self, unit_dim: int, dim: int, past: int, ahead: int) -> None:
        super().__init__()
        self.past, self.ahead = past, ahead
        self.outside = nn.Parameter(torch.randn(2, unit_dim) * 0.02)
        self.fuse = nn.Linear((past + 1 + ahead) * unit_dim, dim)

    def forward(self, encoded: Tensor, lengths: Tensor, pointer: Tensor) -> Tensor:
        """``encoded [B, U, E]``, ``lengths [B]``, ``pointer [B, T]`` -> ``[B, T, D]``."""
        at = pointer[..., None] + torch.arange(-self.past, self.ahead + 1, device=pointer.device)
        b, t, w = at.shape
        index = at.clamp(0, encoded.shape[1] - 1).flatten(1)[..., None].expand(-1, -1, encoded.shape[-1])
        near = encoded.gather(1, index).view(b, t, w, -1)
        near = torch.where((at < 0)[..., None], self.outside[0].to(near.dtype), near)
        near = torch.where((at >= lengths[:, None, None])[..., None], self.outside[1].to(near.dtype), near)
        return self.fuse(near.flatten(2))
