"""Prompt lookup: the latest place of the longest match, what follows it, and rows without one."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from speech_mtp.decoding import text
from speech_mtp.decoding.lookup import Lookup, latest_match
from speech_mtp.types import Sampling
from tests.decoding.walk import proposed, tiny_text_lm

LM = tiny_text_lm(9)
GREEDY = Sampling(temperature=0)


def reference(row: list[int], most: int, least: int) -> int | None:
    for n in range(most, least - 1, -1):
        for start in range(len(row) - 1, n - 1, -1):
            if row[start - n : start] == row[len(row) - n :]:
                return start
    return None


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9), min_size=1, max_size=4), st.integers(1, 2))
def test_the_match_is_the_longest_and_the_latest(rows: list[list[int]], least: int) -> None:
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.tensor([row + [1] * (10 - len(row)) for row in rows])  # what lies past a row may look like a match
    start, found = latest_match(tokens, lengths, 3, least)
    expected = [reference(row, 3, least) for row in rows]
    assert found.tolist() == [place is not None for place in expected]
    assert start.tolist() == [place or 0 for place in expected]


def test_the_draft_follows_the_match_and_repeats_it_at_the_end() -> None:
    run = text.start(LM, [[1, 2, 3, 4, 5, 1, 2], [6, 7, 8, 7, 8], [1, 2, 3]], GREEDY, Lookup(depth=4))
    draft = proposed(run)
    assert draft.tokens[:2, :, 0].tolist() == [[2, 3, 4, 5, 1], [8, 7, 8, 7, 8]]
    assert draft.parents.tolist() == [[-1, 0, 1, 2, 3], [-1, 0, 1, 2, 3], [-1] * 5]


def test_rows_without_a_match_count_no_draft() -> None:
    run = text.start(LM, [[1, 2, 3], [4, 5]], GREEDY, Lookup(), max_new_tokens=1)
    assert proposed(run).tokens.shape[1] == 1
    run.advance()
    run = text.start(LM, [[1, 2, 3, 1, 2], [4, 5]], GREEDY, Lookup(depth=1), max_new_tokens=9)
    run.advance()
    assert run.statistics.forwards == 2
    assert run.statistics.tried == [1]
