"""The bound of the quality gate: as tight as so many words allow."""

from __future__ import annotations

import pytest
import torch

from speech_mtp.evaluation.wer import WordErrors
from tests.gate import CHANCE, EVERYDAY, EXPECTED_WER, SENTENCES, most_errors, understood

WORDS = 1116


def share_that_passes(rate: float, words: int) -> float:
    law = torch.distributions.Binomial(words, torch.tensor(rate, dtype=torch.float64))
    return float(law.log_prob(torch.arange(most_errors(words) + 1.0, dtype=torch.float64)).exp().sum())


@pytest.mark.parametrize("words", [10, 120, WORDS])
def test_the_bound_is_a_quantile(words: int) -> None:
    assert share_that_passes(EXPECTED_WER, words) >= 1 - CHANCE
    law = torch.distributions.Binomial(words, torch.tensor(EXPECTED_WER, dtype=torch.float64))
    fewer = torch.arange(float(most_errors(words)), dtype=torch.float64)
    assert float(law.log_prob(fewer).exp().sum()) < 1 - CHANCE


def test_a_model_twice_as_bad_fails() -> None:
    assert len(EVERYDAY) + len(SENTENCES) == 52
    assert most_errors(WORDS) / WORDS < 0.043
    assert share_that_passes(2 * EXPECTED_WER, WORDS) < 0.01


@pytest.mark.parametrize(("errors", "holds"), [(34, True), (47, True), (48, False), (67, False), (112, False)])
def test_errors_are_counted_against_it(errors: int, holds: bool) -> None:
    _, passed, figures = understood(WordErrors(errors, WORDS, 0, 1))
    assert passed is holds
    assert "bound 4.2%" in figures
