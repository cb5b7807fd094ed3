"""Rows are selected, put and widened alike, whatever the values of a row are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speech_mtp.nn.kv_cache import KVCache
from speech_mtp.nn.row_values import put, select, widen
from speech_mtp.types import RowSampling, Sampling


@dataclass
class Inner:
    tokens: Tensor
    flag: bool = False


@dataclass
class Values:
    cache: KVCache
    inner: Inner
    sampling: RowSampling
    nothing: Any = None


def values(lengths: list[int], width: int, size: int = 4) -> Values:
    """Rows that are told apart by their lengths."""
    rows = len(lengths)
    cache = KVCache.empty(2, rows, 1, size, 3, torch.device("cpu"))
    cache.keys += torch.tensor(lengths, dtype=torch.float)[:, None, None, None]
    cache.advance(torch.tensor(lengths), max(lengths))
    tokens = torch.tensor(lengths)[:, None].repeat(1, width)
    settings = [Sampling(temperature=0.5 * n, top_k=n, seed=n) for n in lengths]
    return Values(cache, Inner(tokens), RowSampling(settings))


def seen(found: Values) -> list[tuple[list[float], int, list[int], int]]:
    """Of every row: the keys that count, its length, its tokens, its seed."""
    keys, lengths = found.cache.keys[0, :, 0, :, 0], found.cache.lengths.tolist()
    return [
        (keys[b, :n].tolist(), n, found.inner.tokens[b].tolist(), int(found.sampling.seed[b]))
        for b, n in enumerate(lengths)
    ]


def test_rows_are_selected_in_any_order() -> None:
    found = select(values([1, 2, 3], 2), torch.tensor([2, 0]))
    assert seen(found) == [([3.0] * 3, 3, [3, 3], 3), ([1.0], 1, [1, 1], 1)]
    assert found.nothing is None
    assert found.inner.flag is False


def test_a_row_is_put_and_the_narrower_is_padded() -> None:
    found = put(values([1, 2], 2), 1, values([6], 3, 8))
    assert seen(found) == [([1.0], 1, [1, 1, 0], 1), ([6.0] * 6, 6, [6, 6, 6], 6)]
    assert found.sampling.most_top_k == 6
    found = put(values([1, 2], 3, 8), 0, values([4], 1))
    assert seen(found) == [([4.0] * 4, 4, [4, 0, 0], 4), ([2.0] * 2, 2, [2, 2, 2], 2)]
    found = put(found, 0, values([1], 1))
    assert (found.sampling.most_top_k, found.sampling.temperature.tolist()) == (2, [0.5, 1.0])


def test_more_rows_are_empty_and_greedy() -> None:
    found = widen(values([2], 2), 3)
    assert seen(found) == [([2.0] * 2, 2, [2, 2], 2), ([], 0, [0, 0], 0), ([], 0, [0, 0], 0)]
    assert found.sampling.temperature.tolist() == [1.0, 0, 0]


def test_what_no_row_asks_for_is_not_done() -> None:
    greedy, plain, shaped = Sampling(temperature=0, top_p=0.5), Sampling(), Sampling(top_p=0.5, repetition_penalty=1.1)

    def asked(*settings: Sampling) -> tuple[bool, bool, bool]:
        rows = RowSampling(settings)
        return rows.sampled, rows.filtered, rows.penalised

    assert asked(greedy) == (False, False, False)
    assert asked(greedy, plain) == (True, False, False)
    assert asked(plain, shaped) == (True, True, True)
    twice = RowSampling([plain, shaped]).repeated(2)
    assert twice.top_p.tolist() == [1.0, 1.0, 0.5, 0.5]
    assert [one.top_p for one in twice.settings] == [1.0, 1.0, 0.5, 0.5]
