"""The key-value cache of a transformer: preallocated buffers, one length per row, written in place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class KVCache:
    """``keys, values [layers, B, H, S, d]``; row b holds ``lengths[b]`` valid entries.

    Draft nodes are written behind the valid entries and stay there only if :meth:`commit` keeps them.
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor

    @classmethod
    def empty(
        cls,
        layers: int,
        rows: int,
        heads: int,
        size: int,
        dim: int,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> KVCache:
        shape = (layers, rows, heads, size, dim)
        zeros = torch.zeros(shape, device=device, dtype=dtype)
        return cls(zeros, zeros.clone(), torch.zeros(rows, dtype=torch.long, device=device))

    @property
    def size(self) -> int:
        return self.keys.shape[3]

    def grow(self, size: int) -> None:
        """Make room for ``size`` entries per row (doubling, so that long speech copies rarely)."""
        if size > self.size:
            more = max(size, 2 * self.size) - self.size
            pad = (0, 0, 0, more)
            self.keys = torch.nn.functional.pad(self.keys, pad)
            self.values = torch.nn.functional.pad(self.values, pad)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Put ``[B, H, M, d]`` behind the valid entries; returns all keys and values of the layer."""
        b, h, m, d = keys.shape
        at = (self.lengths[:, None] + torch.arange(m, device=keys.device))[:, None, :, None].expand(b, h, m, d)
        self.keys[layer].scatter_(2, at, keys)
        self.values[layer].scatter_(2, at, values)
        return self.keys[layer], self.values[layer]

    def mask(self, ancestors: Tensor) -> Tensor:
        """Which entries each draft node sees: ``ancestors [B, M, M]`` -> ``[B, 1, M, S]`` bool."""
        m = ancestors.shape[1]
        slots = torch.arange(self.size, device=ancestors.device)
        seen = (slots < self.lengths[:, None])[:, None].expand(-1, m, -1).clone()
        at = (self.lengths[:, None] + torch.arange(m, device=ancestors.device))[:, None].expand(-1, m, -1)
        return seen.scatter(2, at, ancestors)[:, None]

    def behind(self, count: int) -> tuple[Tensor, Tensor]:
        """Make room for a chain of ``count`` new entries; their positions ``[B, count]``, mask ``[B, 1, count, S]``."""
        self.grow(int(self.lengths.max()) + count)
        device = self.lengths.device
        causal = torch.ones(count, count, dtype=torch.bool, device=device).tril()
        index = self.lengths[:, None] + torch.arange(count, device=device)
        return index, self.mask(causal.expand(len(self.lengths), -1, -1))

    def commit(self, path: Tensor, length: Tensor) -> None:
        """Keep the nodes ``path [B, M]`` (first ``length [B]`` of them) as the newest valid entries."""
        b, m = path.shape
        if m > 1:
            layers, _, h, _, d = self.keys.shape
            source = (self.lengths[:, None] + path.clamp(min=0))[None, :, None, :, None].expand(layers, b, h, m, d)
            target = (self.lengths[:, None] + torch.arange(m, device=path.device))[None, :, None, :, None]
            target = target.expand(layers, b, h, m, d)
            for buffer in (self.keys, self.values):
                buffer.scatter_(3, target, buffer.gather(3, source))
        self.lengths = self.lengths + length

    def clone(self) -> KVCache:
        return KVCache(self.keys.clone(), self.values.clone(), self.lengths.clone())


def ancestors_of(parents: Tensor) -> Tensor:
    """``parents [B, M]`` -> ``[B, M, M]`` bool: node i sees itself and every node on its way to the root."""
    b, m = parents.shape
    seen = torch.eye(m, dtype=torch.bool, device=parents.device).expand(b, m, m).clone()
    for i in range(1, m):
        above = seen.gather(1, parents[:, i].clamp(min=0)[:, None, None].expand(-1, 1, m))[:, 0]
        seen[:, i] |= above & (parents[:, i] >= 0)[:, None]
    return seen
