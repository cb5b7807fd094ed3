"""Keys and values of texts that come and go: rows of one pool, and one pass over new entries in some of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from speech_mtp.nn.kv_cache import attention

_SIZE = 64  # entries that a row has room for at first


class RowPool:
    """``keys, values [layers, rows, H, S, d]``: each row is handed out to one text at a time.

    There are 1, 2, 4, 8, ... rows, and room for 64, 128, ... entries in each. How many of them are valid is known by
    whoever has the row. One thread at a time may use a pool; :meth:`give_back` alone may be called at any time.
    """

    def __init__(self, layers: int, heads: int, dim: int, device: torch.device, dtype: torch.dtype) -> None:
        with torch.inference_mode():
            self.keys = torch.zeros(layers, 1, heads, _SIZE, dim, device=device, dtype=dtype)
            self.values = self.keys.clone()
        self._free = [0]
        self._returned: deque[int] = deque()  # appending is atomic: finalisers run in the middle of anything

    @property
    def num_rows(self) -> int:
        """How many rows there are, free or not."""
        return self.keys.shape[1]

    @property
    def num_taken(self) -> int:
        """How many rows are handed out."""
        return self.num_rows - len(self._free) - len(self._returned)

    @torch.inference_mode()
    def take(self) -> int:
        """A row of zeros; the lowest that is free."""
        while self._returned:
            self._free.append(self._returned.popleft())
        if not self._free:
            self._free = list(range(self.num_rows, 2 * self.num_rows))
            self._enlarge(2 * self.num_rows, self.keys.shape[3])
        row = min(self._free)
        self._free.remove(row)
        for buffer in (self.keys, self.values):
            buffer[:, row] = 0
        return row

    def give_back(self, row: int) -> None:
        """``row`` is free again."""
        self._returned.append(row)

    @torch.inference_mode()
    def chains(self, rows: Sequence[int], starts: Sequence[int], counts: Sequence[int]) -> Chains:
        """A pass that puts ``counts[r]`` entries into ``rows[r]``, behind its first ``starts[r]``."""
        size = max(starts) + max(counts)
        if size > self.keys.shape[3]:
            self._enlarge(self.num_rows, max(size, 2 * self.keys.shape[3]))
        return Chains(self.keys, self.values, list(rows), list(starts), list(counts))

    def _enlarge(self, rows: int, size: int) -> None:
        pad = (0, 0, 0, size - self.keys.shape[3], 0, 0, 0, rows - self.num_rows)
        self.keys, self.values = F.pad(self.keys, pad), F.pad(self.values, pad)


@dataclass
class Chains:
    """New entries behind the first ``starts`` of some rows, ``counts`` in number, each seeing its row up to itself.

    Attention layers either have the entries of all rows one after the other (:meth:`attend`)::

        rows 4, 0, 1 with 2, 1, 3 new entries      a a b c c c      [1, H, N, d]

    or as rows that are padded at their end (:meth:`write`)::

        a a .
        b . .                                                       [R, H, M, d]
        c c c
    """

    keys: Tensor
    values: Tensor
    rows: list[int]
    starts: list[int]
    counts: list[int]

    @cached_property
    def _masks(self) -> list[Tensor]:
        return [self._mask(start, count) for start, count in zip(self.starts, self.counts, strict=True)]

    def _mask(self, start: int, count: int) -> Tensor:
        """What is added to the scores of one row ``[1, 1, M, S]``."""
        seen = torch.zeros(1, 1, count, start + count, dtype=self.keys.dtype, device=self.keys.device)
        behind = torch.ones(count, start + count, dtype=torch.bool, device=seen.device).triu(start + 1)
        return seen.masked_fill_(behind, torch.finfo(seen.dtype).min)

    @property
    def places(self) -> Tensor:
        """``[1, N]``: where in its text every entry is."""
        ranges = [range(start, start + count) for start, count in zip(self.starts, self.counts, strict=True)]
        return torch.tensor([[place for entries in ranges for place in entries]], device=self.keys.device)

    def attend(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None = None) -> Tensor:
        """Queries, keys and values ``[1, H, N, d]`` of one layer -> what attention gives ``[1, H, N, d]``, row by row:
        each over the entries of its own."""
        assert mask is None, "chains have masks of their own"
        parts = []
        new = zip(*(x.split(self.counts, 2) for x in (queries, keys, values)), strict=True)
        for row, start, mine, (q, k, v) in zip(self.rows, self.starts, self._masks, new, strict=True):
            end = mine.shape[-1]
            self.keys[layer, row, :, start:end] = k[0]
            self.values[layer, row, :, start:end] = v[0]
            one = slice(row, row + 1)
            parts.append(attention(q, self.keys[layer, one, :, :end], self.values[layer, one, :, :end], mine))
        if len(parts) == 1:
            return parts[0]
        return torch.cat([part.transpose(1, 2) for part in parts], 1).transpose(1, 2)

    @property
    def padded_places(self) -> Tensor:
        """``[R, M]``: where in its text every entry of the padded rows is."""
        starts = torch.tensor(self.starts, device=self.keys.device)
        return starts[:, None] + torch.arange(max(self.counts), device=starts.device)

    @property
    def seen(self) -> int:
        """The number S of entries that :meth:`write` returns."""
        return max(self.starts) + max(self.counts)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``[R, H, M, d]`` of one layer -> the first S of each of the rows ``[R, H, S, d]``."""
        found = []
        for buffer, entries in ((self.keys[layer], keys), (self.values[layer], values)):
            for row, start, new in zip(self.rows, self.starts, entries, strict=True):
                buffer[row, :, start : start + new.shape[1]] = new
            first = buffer[:, :, : self.seen]
            one = self.rows[0]
            found.append(first[one : one + 1] if len(self.rows) == 1 else first[self.rows])
        return found[0], found[1]
