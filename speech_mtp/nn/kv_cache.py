"""The key-value cache of a transformer: preallocated buffers, one length per row, written in place."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from speech_mtp.nn.visibility import Mask, Stripes, block_attention, plain_attention


class Attends(Protocol):
    """Keys and values of the tokens before, with attention of new ones over them."""

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """New queries, keys and values ``[B, H, M, d]`` of one layer -> what they see ``[B, H, M, d]``."""


def attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Mask | None, chain: bool = False) -> Tensor:
    """Attention of ``[B, H, M, d]`` over ``[B, H', S, d]``, H' a divisor of H. ``mask`` is added to the
    scores, or is bool (True: may look), or what :func:`speech_mtp.nn.visibility.mask_of` makes, or None; ``chain``: M
    is S, and each sees those before it."""
    grouped = queries.shape[1] != keys.shape[1]
    if isinstance(mask, BlockMask):
        return block_attention(queries, keys, values, mask, grouped)
    if isinstance(mask, Stripes):
        return mask.attend(queries, keys, values)
    if grouped and mask is not None and queries.device.type == "cuda":
        return _side_by_side(queries, keys, values, mask)
    return plain_attention(queries, keys, values, mask, chain)


def _side_by_side(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """The queries of heads that share keys as so many queries of one head: on a GPU no kernel takes a mask and grouped
    keys, and without one the keys would be copied for every head and all scores kept."""
    groups, count = queries.shape[1] // keys.shape[1], queries.shape[2]
    together = queries.unflatten(1, (-1, groups)).flatten(2, 3)
    repeated = mask.expand(-1, -1, groups, -1) if count == 1 else mask.repeat(1, 1, groups, 1)
    seen = F.scaled_dot_product_attention(together, keys, values, attn_mask=repeated)
    return seen.unflatten(2, (groups, count)).flatten(1, 2)


@dataclass
class KVCache:
    """``keys, values [layers, B, H, S, d]``; row b holds ``lengths[b]`` valid entries.

    Draft nodes are written behind the valid entries and stay there only if :meth:`commit` keeps them. ``lengths`` is
    replaced, never changed in place.
    """

    keys: Tensor
    values: Tensor
    lengths: Tensor
    _bound: int = 0
    _place: tuple[Tensor, int, Tensor | slice] | None = None

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

    @property
    def longest(self) -> int:
        """At least as many as any row holds: exact on a CPU; elsewhere what rows could hold, which costs no copy."""
        return int(self.lengths.max()) if self.lengths.device.type == "cpu" else self._bound

    def advance(self, count: Tensor, at_most: int) -> None:
        """Take ``count [B]`` entries behind the valid ones, none above ``at_most``, as valid."""
        self.lengths = self.lengths + count
        self._bound += at_most

    def know(self, longest: int) -> None:
        """No row holds more than ``longest`` entries: said by whoever has copied lengths to the host anyway."""
        self._bound = longest

    def make_room(self, more: int) -> None:
        """Make room for ``more`` entries behind those of the longest row."""
        if self.longest + more > self.size:
            self._bound = int(self.lengths.max())  # the rows may be shorter than they could be
            self.grow(self._bound + more)

    def grow(self, size: int) -> None:
        """Make room for ``size`` entries per row (doubling, so that long speech copies rarely)."""
        if size > self.size:
            more = max(size, 2 * self.size) - self.size
            self.keys, self.values = (F.pad(x, (0, 0, 0, more)) for x in (self.keys, self.values))

    def write(self, layer: int, keys: Tensor, values: Tensor, seen: int | None = None) -> tuple[Tensor, Tensor]:
        """Put ``[B, H, M, d]`` behind the valid entries; returns the first ``seen`` keys and values of the layer."""
        place = self._new_slots(keys.shape)
        for buffer, new in ((self.keys[layer], keys), (self.values[layer], values)):
            if isinstance(place, slice):
                buffer[:, :, place] = new
            else:
                buffer.scatter_(2, place, new)
        if seen is None:
            return self.keys[layer], self.values[layer]
        return self.keys[layer, :, :, :seen], self.values[layer, :, :, :seen]

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """``mask [B, 1, M, S]`` is added to the scores over the first S entries, the new ones among them. None: a chain
        behind an empty cache, or a single node that sees all that is in it."""
        count = queries.shape[2]
        seen = self.longest + count if mask is None else mask.shape[-1]
        known, contents = self.write(layer, keys, values, seen)
        return attention(queries, known, contents, mask, chain=mask is None and count > 1)

    def _new_slots(self, shape: torch.Size) -> Tensor | slice:
        """Where new entries ``[B, H, M, d]`` go, as an index of axis S::

            row 0    k k k n n . .      k: one of lengths[b] valid entries
            row 1    k n n . . . .      n: new, M of them

        It is the same for every layer, so it is kept until lengths change. One row on a CPU: a plain slice.
        """
        b, _, m, _ = shape
        if self._place is None or self._place[0] is not self.lengths or self._place[1] != m:
            at: Tensor | slice
            if b == 1 and self.lengths.device.type == "cpu":
                at = slice(int(self.lengths), int(self.lengths) + m)
            else:
                slots = self.lengths[:, None] + torch.arange(m, device=self.lengths.device)
                at = slots[:, None, :, None].expand(shape)
            self._place = self.lengths, m, at
        return self._place[2]

    def mask(self, ancestors: Tensor, seen: int | None = None) -> Tensor:
        """Which of the first ``seen`` entries a draft node sees: ``ancestors [B, M, N]``, of the N entries behind the
        valid ones -> ``[B, 1, M, S]`` bool."""
        m, n = ancestors.shape[1:]
        slots = torch.arange(self.size if seen is None else seen, device=ancestors.device)
        visible = (slots < self.lengths[:, None])[:, None].expand(-1, m, -1).clone()
        at = (self.lengths[:, None] + torch.arange(n, device=ancestors.device))[:, None].expand(-1, m, -1)
        return visible.scatter(2, at, ancestors)[:, None]

    def behind(self, count: int) -> tuple[Tensor, Tensor]:
        """Make room for a chain of ``count`` new entries; their positions ``[B, count]``, mask ``[B, 1, count, S]``."""
        self.make_room(count)
        device = self.lengths.device
        causal = torch.ones(count, count, dtype=torch.bool, device=device).tril()
        index = self.lengths[:, None] + torch.arange(count, device=device)
        return index, self.mask(causal.expand(len(self.lengths), -1, -1))

    def commit(self, path: Tensor, length: Tensor) -> None:
        """Keep the nodes ``path [B, M]`` (first ``length [B]`` of them) as the newest valid entries."""
        b, m = path.shape
        order = torch.arange(m, device=path.device)
        # A chain lies where it belongs already. (Looking costs a copy elsewhere than on a CPU.)
        if m > 1 and not (path.device.type == "cpu" and bool(((path == order) | (path < 0)).all())):
            layers, _, h, _, d = self.keys.shape
            source = (self.lengths[:, None] + path.clamp(min=0))[None, :, None, :, None].expand(layers, b, h, m, d)
            target = (self.lengths[:, None] + order)[None, :, None, :, None].expand(layers, b, h, m, d)
            for buffer in (self.keys, self.values):
                buffer.scatter_(3, target, buffer.gather(3, source))
        self.advance(length, m)

    # -- rows that join and leave: see speech_mtp.nn.row_values -------------------------------------------------
    def select(self, rows: Tensor) -> KVCache:
        """The rows ``rows [N]`` in that order, in buffers of their own."""
        return KVCache(self.keys[:, rows], self.values[:, rows], self.lengths[rows], self._bound)

    def trimmed(self) -> KVCache:
        """The same entries without the room behind those of the longest row."""
        longest = int(self.lengths.max())
        keys, values = (x[:, :, :, :longest].clone() for x in (self.keys, self.values))
        return KVCache(keys, values, self.lengths, longest)

    def put(self, row: int, other: KVCache) -> KVCache:
        """Row ``row`` holds what the only row of ``other`` holds: written in place, buffers grow if they must."""
        count = int(other.lengths)
        self.grow(count)
        for mine, new in ((self.keys, other.keys), (self.values, other.values)):
            mine[:, row, :, :count] = new[:, 0, :, :count]
        lengths = self.lengths.clone()
        lengths[row] = count
        self.lengths, self._bound, self._place = lengths, max(self._bound, count), None
        return self

    def widen(self, rows: int) -> KVCache:
        """Empty rows behind those that there are, up to ``rows`` in all."""
        missing = rows - len(self.lengths)
        if missing < 0:
            raise ValueError(f"There are {len(self.lengths)} rows; select some before {rows} can be left.")
        keys, values = (F.pad(x, (0, 0, 0, 0, 0, 0, 0, missing)) for x in (self.keys, self.values))
        return KVCache(keys, values, F.pad(self.lengths, (0, missing)), self._bound)

    def clone(self) -> KVCache:
        return KVCache(self.keys.clone(), self.values.clone(), self.lengths.clone(), self._bound)


def ancestors_of(parents: Tensor) -> Tensor:
    """``parents [B, M]`` -> ``[B, M, M]`` bool: node i sees itself and every node on its way to the root."""
    m = parents.shape[1]
    if m == 1:
        return torch.ones_like(parents, dtype=torch.bool)[:, None]
    order = torch.arange(m, device=parents.device)
    reach = ((parents[..., None] == order) | (order[:, None] == order)).float()
    steps = 1
    while steps < m - 1:  # squaring doubles how far up a node sees
        reach = (reach @ reach).clamp(max=1)
        steps *= 2
    return reach > 0


def as_keyword(module: nn.Module, kept: Any) -> dict[str, Any]:
    """``kept``, a cache or None, as the keyword argument under which ``module.forward`` takes a cache: ``cache``, or
    ``past_key_values`` in models and releases of ``transformers`` that do not know the first."""
    return {_cache_keyword(type(module).forward): kept}


@cache
def _cache_keyword(forward: Callable[..., Any]) -> str:
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
