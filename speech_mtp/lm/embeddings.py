"""What a speech position is made of: the previous group (fused), the text around the pointer, and the voice."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp.types import TextUnits

BLOCK = 16
"""Rows of the products that encode text units in decoding."""


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

    def in_blocks(self, units: TextUnits) -> Tensor:
        """As :meth:`forward`, a row and ``BLOCK`` tokens or units at a time, the last ones padded.

        Every unit is then computed in products of the same shape at the same place, however much text has arrived.
        """
        return torch.stack([self.row_in_blocks(units, b) for b in range(len(units.lengths))])

    def row_in_blocks(self, units: TextUnits, b: int, known: Tensor | None = None) -> Tensor:
        """Row ``b`` of :meth:`in_blocks`, ``[U, E]``. ``known [n, E]`` is what it gave for the first n units: of these,
        those of full blocks are taken as they are, the others are encoded again with the new ones."""
        first = 0 if known is None else len(known) // BLOCK * BLOCK
        token = units.token[b, first:]
        if known is not None and not len(token):
            return known[:first]
        low = int(token.min()) // BLOCK * BLOCK if len(token) else 0  # states before it are of known units only
        states = torch.cat([self._states(block) for block in _blocks(units.hidden[b, low:])])
        identity = torch.stack([units.phoneme[b, first:], units.stress[b, first:], units.word_start[b, first:]], -1)
        joined = torch.cat([self._identity(block) for block in _blocks(identity)])
        place = F.pad(token - low, (0, len(joined) - len(token)))
        joined = torch.cat([joined, states[place]], -1)
        encoded = torch.cat([self.mlp(block) for block in _blocks(joined)])[: len(token)]
        return encoded if known is None else torch.cat([known[:first], encoded])

    def forward(self, units: TextUnits) -> Tensor:
        identity = self._identity(torch.stack([units.phoneme, units.stress, units.word_start], -1))
        states = self._states(units.hidden)
        token = units.token[..., None].expand(-1, -1, states.shape[-1])
        return self.mlp(torch.cat([identity, states.gather(1, token)], -1))

    def _identity(self, ids: Tensor) -> Tensor:
        """Phoneme, stress and word start ``[..., 3]`` -> ``[..., E]``."""
        phoneme, stress, word_start = ids.unbind(-1)
        found: Tensor = self.phoneme(phoneme) + self.stress(stress) + self.word_start(word_start)
        return found

    def _states(self, hidden: Tensor) -> Tensor:
        """States of the backbone ``[..., D]`` -> the part of a unit that they make."""
        states = F.layer_norm(hidden.to(self.phoneme.weight.dtype), hidden.shape[-1:])
        if self.training and self.blank:
            states = states * (torch.rand_like(states[..., :1]) >= self.blank)
        found: Tensor = self.hidden(states)
        return found


class EncodedUnits:
    """The units of one text that grows, encoded as far as it has come: ``rows [U, E]``.

    They equal :meth:`UnitEncoder.in_blocks` of all units to the last bit; what a full block gave is not computed again.
    """

    def __init__(self, encoder: UnitEncoder, rows: Tensor | None = None) -> None:
        self._encoder = encoder
        self.rows = encoder.phoneme.weight.new_zeros(0, encoder.phoneme.embedding_dim) if rows is None else rows

    @torch.inference_mode()
    def extend(self, units: TextUnits, row: int = 0) -> Tensor:
        """Take row ``row`` of ``units``, which begins with the units that are known; all of it encoded, ``[U, E]``."""
        self.rows = self._encoder.row_in_blocks(units, row, self.rows if len(self.rows) else None)
        return self.rows


def _blocks(rows: Tensor) -> tuple[Tensor, ...]:
    """``[N, E]`` -> blocks ``[BLOCK, E]``, at least one, the last padded with zeros."""
    missing = -len(rows) % BLOCK if len(rows) else BLOCK
    return F.pad(rows, (0, 0, 0, missing)).split(BLOCK)


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
