"""Accepted drafts are counted by hand."""

from __future__ import annotations

import pytest
import torch

from speech_mtp.evaluation.draft_acceptance import acceptance_rates, count_accepted


def row(bits: str) -> torch.Tensor:
    return torch.tensor([[bit == "1" for bit in bits]])


def test_a_token_counts_only_behind_right_ones() -> None:
    guesses = {
        2: (row("11010"), row("11110")),
        3: (row("10110"), row("11100")),
        4: (row("11000"), row("11000")),
    }
    counts = count_accepted(guesses)
    assert counts.tolist() == [[4, 4, 3], [3, 2, 1], [2, 1, 1]]
    rates = acceptance_rates(counts + counts)
    assert rates["accept/2"] == 3 / 4
    assert rates["accept/3"] == 1 / 3
    assert rates["accept/4"] == 1 / 2
    assert rates["conditional/3"] == 1 / 2
    assert rates["conditional/4"] == 1
    assert rates["tokens_per_forward"] == pytest.approx(1 + 3 / 4 + 3 / 8 + 3 / 8)


def test_leaps_fill_their_gaps_from_the_state_before() -> None:
    rng = torch.Generator().manual_seed(0)
    guesses = {o: tuple(torch.rand(2, 3, 40, generator=rng) < 0.8) for o in (3, 5)}
    counts = torch.zeros(4, 3, dtype=torch.long)
    for b in range(3):
        for t in range(1, 40):
            # x_{t+2}, ..., x_{t+5}: offset and age of the state
            chain = [tuple(bool(x[b, t - age]) for x in guesses[o]) for o, age in ((3, 1), (3, 0), (5, 1), (5, 0))]
            for i in range(4):
                known = all(k for _, k in chain[: i + 1])
                before = all(r for r, _ in chain[:i])
                counts[i] += torch.tensor([known, known and before, known and before and chain[i][0]])
    assert count_accepted(guesses).tolist() == counts.tolist()
    assert int(counts[3, 2]) > 5
