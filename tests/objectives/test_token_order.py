"""Token order prediction: targets by hand, the block-wise loss against the dense one, memory, settings."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from speech_mtp.layouts.base import IGNORE
from speech_mtp.lm.causal_lm import CausalLM
from speech_mtp.objectives import _losses
from speech_mtp.objectives._losses import Sparse, listwise_loss
from speech_mtp.objectives.base import Course
from speech_mtp.objectives.ntp import NTP
from speech_mtp.objectives.token_order import TokenOrder, previous_place
from speech_mtp.types import LMOutput, Positions
from tests.objectives.allocations import peak_bytes
from tests.objectives.rows import packed, random_rows

VOCAB = 23


def bound(vocab_size: int = VOCAB, **settings: float) -> TokenOrder:
    torch.manual_seed(1)
    objective = TokenOrder(**settings)  # type: ignore[arg-type]
    objective.bind(CausalLM.tiny(vocab_size), Course(64))
    return objective


def dense_targets(positions: Positions, window: int, temperature: float, vocab_size: int = VOCAB) -> Tensor:
    """``[B, T, V]`` as the paper says it, one position at a time; rows of zeros where nothing comes."""
    assert positions.labels is not None
    out = torch.zeros(*positions.segment.shape, vocab_size)
    for b, t in (positions.labels[..., 0] != IGNORE).nonzero().tolist():
        scores = torch.full((vocab_size,), -math.inf)
        for distance in reversed(range(window)):
            ahead = t + 1 + distance
            if ahead < positions.segment.shape[1] and positions.segment[b, ahead] == positions.segment[b, t]:
                scores[positions.tokens[b, ahead, 0]] = -distance / temperature
        out[b, t] = scores.softmax(-1)
    return out


def dense_loss(states: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The mean over the positions that have a target."""
    counts = targets.sum(-1) > 0
    return -(targets[counts] * F.linear(states[counts], weight).log_softmax(-1)).sum(-1).mean()


# -- targets --------------------------------------------------------------------------------------------------------
def test_three_tokens_by_hand() -> None:
    # 5 6 5 7: ahead of the first 5 come 6 (distance 0), 5 (1), 7 (2); ahead of 6 come 5 (0), 7 (1); of the last 5, 7.
    positions, objective = packed([[5, 6, 5, 7]]), bound(9)
    scores = torch.randn(1, 4, 9, generator=torch.Generator().manual_seed(0))
    objective.unembedding.weight.data = torch.eye(9)
    e = math.exp
    law = scores[0].log_softmax(-1)
    first = (e(0) * law[0, 6] + e(-1) * law[0, 5] + e(-2) * law[0, 7]) / (e(0) + e(-1) + e(-2))
    second = (e(0) * law[1, 5] + e(-1) * law[1, 7]) / (e(0) + e(-1))
    loss = objective.order_loss(LMOutput(scores[:, :, None]), positions)
    assert loss.item() == pytest.approx(-float(first + second + law[2, 7]) / 3, rel=1e-5)


def test_only_the_first_occurrence_ahead_counts() -> None:
    positions = packed([[1, 2, 1, 1, 2], [1, 2]])
    assert positions.labels is not None
    # Labels 2 1 1 2 - | 2 -: each looks for the last place that had the same label, in its document alone.
    assert previous_place(positions.labels[..., 0], positions.segment)[0, :6].tolist() == [-1, -1, 1, 0, -1, -1]


@pytest.mark.parametrize(("window", "temperature"), [(1, 1.0), (3, 1.0), (64, 1.0), (64, 20.0), (5, 0.3)])
@pytest.mark.parametrize("scores_at_once", [VOCAB, 7 * VOCAB, 1 << 22])
def test_block_wise_is_the_dense_loss(
    monkeypatch: pytest.MonkeyPatch, window: int, temperature: float, scores_at_once: int
) -> None:
    monkeypatch.setattr(_losses, "SCORES", scores_at_once)
    torch.manual_seed(0)
    positions, objective = random_rows(3, 41, VOCAB), bound(window=window, temperature=temperature)
    states = torch.randn(3, 41, 32, requires_grad=True)
    weight = objective.unembedding.weight
    found = []
    for loss in (
        objective.order_loss(LMOutput(states[:, :, None]), positions),
        dense_loss(states, weight, dense_targets(positions, window, temperature)),
    ):
        found.append((loss, *torch.autograd.grad(3 * loss, (states, weight))))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_a_window_of_one_is_the_next_token() -> None:
    lm = CausalLM.tiny(VOCAB)
    positions, objective = random_rows(2, 30, VOCAB), bound(window=1)
    objective.unembedding.weight = lm.model.embed_tokens.weight  # type: ignore[assignment]
    out = LMOutput(torch.randn(2, 30, 1, 32))
    terms = dict(objective.terms(lm, out, positions))
    torch.testing.assert_close(terms["order"], terms["next"])


def test_autocast_computes_products_in_its_precision_and_softmax_in_float32() -> None:
    torch.manual_seed(0)
    positions, objective = random_rows(2, 40, VOCAB), bound()
    states = torch.randn(2, 40, 32, requires_grad=True)
    plain = objective.order_loss(LMOutput(states[:, :, None]), positions)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = objective.order_loss(LMOutput(states[:, :, None]), positions)
    assert mixed.dtype == torch.float32
    assert 0 < abs(float(mixed - plain)) < 0.01
    (exact,), (rough,) = (torch.autograd.grad(loss, states) for loss in (plain, mixed))
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, atol=1e-3, rtol=0.05)


def test_no_label_is_no_loss() -> None:
    objective, states = bound(), torch.randn(1, 2, 1, 32, requires_grad=True)
    loss = objective.order_loss(LMOutput(states), packed([[3], [4]]))
    loss.backward()
    assert (loss.item(), states.grad.abs().sum() if states.grad is not None else None) == (0, 0)


# -- memory ---------------------------------------------------------------------------------------------------------
def one_term_at_a_time(objective: TokenOrder | NTP, lm: CausalLM, positions: Positions) -> Callable[[], None]:
    states = torch.randn(1, positions.segment.shape[1], 1, lm.dim, requires_grad=True)

    def work() -> None:
        for _, term in objective.terms(lm, LMOutput(states), positions):
            term.backward(retain_graph=True)
            del term

    return work


def test_scores_of_all_positions_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    vocab_size, length = 4000, 512
    monkeypatch.setattr(_losses, "SCORES", vocab_size * 32)
    lm, positions, objective = CausalLM.tiny(vocab_size), random_rows(1, length, vocab_size), bound(vocab_size)
    whole = 4 * length * vocab_size
    states = torch.randn(1, length, 1, 32, requires_grad=True)
    assert peak_bytes(lambda: objective.order_loss(LMOutput(states), positions).backward()) < 0.5 * whole
    next_token = peak_bytes(one_term_at_a_time(NTP(), lm, positions))
    assert next_token > 2 * whole  # the count counts
    assert peak_bytes(one_term_at_a_time(objective, lm, positions)) < 1.1 * next_token


def test_with_a_large_vocabulary_the_order_needs_no_more_memory_than_the_next_token() -> None:
    lm, positions = CausalLM.tiny(32_768), random_rows(1, 256, 32_768)
    next_token = peak_bytes(one_term_at_a_time(NTP(), lm, positions))
    lm.zero_grad()
    assert peak_bytes(one_term_at_a_time(bound(32_768), lm, positions)) < 1.1 * next_token


def test_targets_are_asked_for_in_blocks() -> None:
    asked: list[tuple[int, int]] = []

    def targets(begin: int, end: int) -> Sparse:
        asked.append((begin, end))
        return torch.zeros(end - begin, 1, dtype=torch.long), torch.ones(end - begin, 1)

    vocab_size = _losses.SCORES // 4
    listwise_loss(torch.zeros(10, 2), torch.zeros(vocab_size, 2), targets)
    assert asked == [(0, 4), (4, 8), (8, 10)]


# -- settings -------------------------------------------------------------------------------------------------------
def test_weights_too_small_to_count_are_not_looked_at() -> None:
    assert (TokenOrder().window, TokenOrder(temperature=100.0).window) == (30, 3000)
    assert TokenOrder(window=7).window == 7


@pytest.mark.parametrize("settings", [{"window": 0}, {"temperature": 0.0}, {"share": -1.0}])
def test_settings_that_are_not_positive_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="all must be positive"):
        bound(**settings)
