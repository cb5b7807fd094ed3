"""Rows that are handed out and come back, and passes over new entries in some of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from speech_mtp.nn.kv_cache import KVCache
from speech_mtp.nn.row_pool import RowPool

pytestmark = pytest.mark.usefixtures("inference")
CPU = torch.device("cpu")


@pytest.fixture
def inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def pool() -> RowPool:
    return RowPool(2, 3, 4, CPU, torch.float32)


def test_rows_come_in_steps_and_the_lowest_free_one_is_taken() -> None:
    rows = pool()
    sizes = []
    for expected in range(5):
        assert rows.take() == expected
        sizes.append(rows.num_rows)
    assert sizes == [1, 2, 4, 4, 8]
    rows.give_back(3)
    rows.give_back(1)
    assert rows.num_taken == 3
    assert [rows.take() for _ in range(3)] == [1, 3, 5]
    assert rows.num_rows == 8


def test_a_row_is_empty_when_it_is_taken_and_growing_keeps_what_is_there() -> None:
    rows = pool()
    first = rows.take()
    rows.keys[:, first], rows.values[:, first] = torch.nan, torch.inf
    rows.give_back(first)
    assert rows.take() == first
    assert not rows.keys.any()
    assert not rows.values.any()
    rows.keys[:, first, :, :64] = 7
    rows.take()
    rows.chains([first], [60], [8])
    assert rows.keys.shape == (2, 2, 3, 128, 4)
    assert (rows.keys[:, first, :, :64] == 7).all()
    assert not rows.keys[:, 1].any()


@pytest.mark.parametrize("starts", [[5, 0, 9], [0, 0, 0]])
def test_chains_see_what_caches_of_one_row_see(starts: list[int]) -> None:
    torch.manual_seed(0)
    rows, counts, heads, layer = pool(), [2, 1, 3], 3, 1
    taken = [rows.take() for _ in range(4)][1:][::-1]
    before = [torch.randn(2, 1, heads, start, 4) for start in starts]
    new = torch.randn(3, 1, heads, sum(counts), 4)
    queries = torch.randn(1, 2 * heads, sum(counts), 4)
    for row, start, known in zip(taken, starts, before, strict=True):
        rows.chains([row], [0], [start])
        rows.keys[layer, row, :, :start], rows.values[layer, row, :, :start] = known[0, 0], known[1, 0]
    chains = rows.chains(taken, starts, counts)
    seen = chains.attend(layer, queries, new[0], new[1])
    padded = [
        torch.nn.utils.rnn.pad_sequence([p[0].transpose(0, 1) for p in n.split(counts, 2)], True) for n in new[:2]
    ]
    keys, values = rows.chains(taken, starts, counts).write(layer, *(p.transpose(1, 2) for p in padded))
    assert keys.shape == (3, heads, max(starts) + 3, 4)
    at = 0
    for r, (start, count) in enumerate(zip(starts, counts, strict=True)):
        alone = KVCache.empty(2, 1, heads, 32, 4, CPU)
        alone.write(layer, *before[r])
        alone.advance(torch.tensor([start]), start)
        here = slice(at, at + count)
        mask = torch.zeros(1, 1, count, start + count).masked_fill(
            torch.ones(count, start + count, dtype=torch.bool).triu(start + 1), -1e9
        )
        expected = alone.attend(layer, queries[:, :, here], new[0][:, :, here], new[1][:, :, here], mask)
        torch.testing.assert_close(seen[:, :, here], expected, atol=1e-6, rtol=0)
        assert torch.equal(keys[r, :, : start + count], alone.keys[layer, 0, :, : start + count])
        assert torch.equal(values[r, :, : start + count], alone.values[layer, 0, :, : start + count])
        at += count
    assert chains.places[0].tolist() == [p for s, c in zip(starts, counts, strict=True) for p in range(s, s + c)]
    assert chains.padded_places[0].tolist() == [starts[0] + i for i in range(3)]
