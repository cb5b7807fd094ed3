"""Rows of values that are nested, differ in size, or hold a cache."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from speech_mtp.nn.kv_cache import KVCache
from speech_mtp.nn.row_values import put, select, widen


@dataclass
class Inner:
    tokens: Tensor
    name: str = "kept"


@dataclass
class Value:
    inner: Inner
    flags: Tensor
    maybe: Tensor | None = None
    depth: int = 3


def value(rows: list[list[int]]) -> Value:
    return Value(Inner(torch.tensor(rows)), torch.tensor([row[0] > 2 for row in rows]))


def test_rows_are_chosen_put_and_added() -> None:
    before = value([[1, 2, 3], [4, 5, 6]])
    wide = put(widen(before, 4), 2, value([[7, 8, 9, 10]]))
    assert wide.inner.tokens.tolist() == [[1, 2, 3, 0], [4, 5, 6, 0], [7, 8, 9, 10], [0, 0, 0, 0]]
    assert wide.flags.tolist() == [False, True, True, False]
    assert put(wide, 0, value([[5]])).inner.tokens[0].tolist() == [5, 0, 0, 0]
    few = select(wide, torch.tensor([2, 0]))
    assert few.inner.tokens.tolist() == [[7, 8, 9, 10], [1, 2, 3, 0]]
    assert (few.inner.name, few.maybe, few.depth) == ("kept", None, 3)
    assert before.inner.tokens.tolist() == [[1, 2, 3], [4, 5, 6]]
    with pytest.raises(ValueError, match="There are 2 rows"):
        widen(before, 1)


def cache(entries: list[int], size: int = 2) -> KVCache:
    """Row b holds ``entries[b]`` keys, which say whose they are and where they stand."""
    made = KVCache.empty(2, len(entries), 1, size, 1, torch.device("cpu"))
    made.make_room(max(entries))
    new = 10.0 * torch.arange(1, len(entries) + 1)[:, None] + torch.arange(max(entries))
    for layer in range(2):
        made.write(layer, new[:, None, :, None], -new[:, None, :, None])
    made.advance(torch.tensor(entries), max(entries))
    return made


def held(kept: KVCache, row: int) -> list[float]:
    assert torch.equal(kept.keys, -kept.values)
    assert torch.equal(kept.keys[0], kept.keys[1])
    return kept.keys[0, row, 0, : kept.lengths[row], 0].tolist()


def test_rows_of_a_cache() -> None:
    both, alone = cache([1, 2]), cache([5])
    wide = widen(both, 3)
    address = wide.keys.data_ptr()
    assert put(wide, 2, cache([1])).keys.data_ptr() == address  # there is room
    assert [held(wide, b) for b in range(3)] == [[10], [20, 21], [10]]
    wide = put(wide, 0, alone)
    assert [held(wide, b) for b in range(3)] == [[10, 11, 12, 13, 14], [20, 21], [10]]
    wide.make_room(1)
    for layer in range(2):
        wide.write(layer, torch.full((3, 1, 1, 1), 99.0), torch.full((3, 1, 1, 1), -99.0))
    wide.advance(torch.ones(3, dtype=torch.long), 1)
    assert [held(select(wide, torch.tensor([1, 0])), b) for b in range(2)] == [[20, 21, 99], [10, 11, 12, 13, 14, 99]]
    assert held(alone, 0) == [10, 11, 12, 13, 14]
    with pytest.raises(ValueError, match="There are 3 rows"):
        widen(wide, 2)
