"""The draw of small vocabularies by the compiled kernels is that of torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from speech_mtp.decoding import sampling
from speech_mtp.types import RowSampling, Sampling
from tests.nn.test_blocks import needs_kernels

SETTINGS: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 0.8},
    {"temperature": 0.7, "top_p": 0.9},
    {"temperature": 1.3, "top_k": 20},
    {"temperature": 0.6, "top_k": 50, "top_p": 0.8},
    {"temperature": 0.9, "top_p": 0.01},
]


def both(monkeypatch: pytest.MonkeyPatch, logits: torch.Tensor, rows: RowSampling, at: torch.Tensor) -> list[list[int]]:
    found = [sampling.choose(logits, rows, at, 3).tolist()]
    with monkeypatch.context() as without:
        without.setattr(sampling, "is_native", lambda: False)
        return [*found, sampling.choose(logits, rows, at, 3).tolist()]


@needs_kernels
@pytest.mark.parametrize("size", [1, 2, 50, 1000, 2048])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_same_tokens(size: int, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(size)
    rows = RowSampling([Sampling(seed=seed, **settings) for seed in range(60)], torch.device("cpu"))
    logits = 3 * torch.randn(60, size, generator=rng)
    logits[::2, 1::3] = float("-inf")
    ours, theirs = both(monkeypatch, logits, rows, torch.randint(1 << 20, (60,), generator=rng))
    assert ours == theirs
    assert size < 50 or len(set(ours)) > 20


@needs_kernels
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_the_same_tokens_where_all_are_nearly_as_likely(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Top-k leaves a small part of the whole then, and tokens near the border of top-p are often drawn."""
    rows = RowSampling([Sampling(seed=seed, **settings) for seed in range(600)], torch.device("cpu"))
    logits = torch.randn(600, 300, generator=torch.Generator().manual_seed(2))
    ours, theirs = both(monkeypatch, logits, rows, torch.arange(600))
    assert ours == theirs


@needs_kernels
def test_rows_with_settings_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = RowSampling([Sampling(seed=9, **settings) for settings in SETTINGS] * 20, torch.device("cpu"))
    logits = torch.randn(len(SETTINGS) * 20, 300, generator=torch.Generator().manual_seed(1))
    ours, theirs = both(monkeypatch, logits, rows, torch.arange(len(logits)))
    assert ours == theirs


@needs_kernels
def test_the_first_of_equals_and_numbers_that_are_no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Greedy ties go to the first; a row of which one token alone may be drawn gets that one."""
    logits = torch.zeros(3, 70)
    logits[1:] = float("-inf")
    logits[1:, 33] = 0.5
    rows = RowSampling([Sampling(**s) for s in (SETTINGS[0], SETTINGS[1], SETTINGS[2])], torch.device("cpu"))
    assert both(monkeypatch, logits, rows, torch.arange(3)) == [[0, 33, 33]] * 2
    logits[0] = torch.where(torch.arange(70) < 5, float("-inf"), torch.nan)
    assert both(monkeypatch, logits[:1], rows.select(torch.tensor([0])), torch.arange(1)) == [[5]] * 2
