"""Losses over many rows, piece by piece: the same numbers and gradients as all at once."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp.heads.base import MTPHead
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.objectives import _pieces
from speech_mtp.objectives._pieces import mean_of_pieces
from speech_mtp.objectives.mtp import MTP, MTPConfig, divergence
from speech_mtp.types import LMOutput
from tests.objectives.test_mtp import batch, lm, make, states  # noqa: F401
from tests.training.tiny_text import VOCAB

DRAFTED = VOCAB - 3


def drafting(lm: TextLM, name: str = "eagle3") -> MTPHead:  # noqa: F811
    """A head without an output layer of its own where it can do without, that drafts the first tokens."""
    kind = {"private": False} if name == "eagle3" else {}
    head = make(lm, name, draft_vocab=DRAFTED, **kind)
    head.set_vocabulary(torch.arange(DRAFTED))
    return head


def test_the_mean_and_its_gradients_are_those_of_all_rows_at_once() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(4, 3).double(), torch.randn(11, 4, dtype=torch.float64)
    weights, cuts = torch.rand(11, dtype=torch.float64), []

    def term(states: Tensor, rows: slice) -> Tensor:
        cuts.append(rows)
        return (layer(states).square().sum(-1) * weights[rows]).mean()

    found = []
    for rows in (None, 11, 4):
        given = x.clone().requires_grad_()
        layer.zero_grad()
        mean = mean_of_pieces(term, given * 2, rows) if rows else term(given * 2, slice(None))
        (3 * mean).backward()
        found.append((mean.detach(), given.grad, layer.weight.grad, layer.bias.grad))
    for whole, *others in zip(*found, strict=True):
        for pieces in others:
            torch.testing.assert_close(whole, pieces)
    assert cuts[-3:] == [slice(0, 4), slice(4, 8), slice(8, 12)]
    with torch.no_grad():
        torch.testing.assert_close(mean_of_pieces(term, x * 2, 4), found[0][0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_divergence_is_that_of_torch(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    law, scores = torch.randn(5, 7).log_softmax(-1).to(torch.promote_types(dtype, torch.float32)), torch.randn(5, 7)
    one, other = (scores.to(dtype).requires_grad_() for _ in range(2))
    wide = other.to(law.dtype)
    expected = F.kl_div(wide.log_softmax(-1), law, reduction="batchmean", log_target=True)
    found = divergence(law, one)
    torch.testing.assert_close(found, expected)
    (2 * found).backward()
    (2 * expected).backward()
    torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("losses", [{"soft": 1.0}, {"soft": 0.5, "hard": 1.0, "l1": 0.3}], ids=["soft", "several"])
@pytest.mark.parametrize("name", ["eagle3", "fastmtp", "medusa", "hydra"])
def test_a_head_learns_the_same(
    lm: TextLM,  # noqa: F811
    name: str,
    losses: dict[Any, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As without pieces: all rows in one or two at a time, each offset's term gone back through by itself or all
    together."""
    positions, head = batch(), drafting(lm, name)
    out, found = states(lm, positions, head.taps), []
    for rows, together in ((None, False), (1000, False), (2, False), (2, True)):
        monkeypatch.setitem(_pieces.NUMBERS, "cpu", (rows or 1) * DRAFTED)
        by_pieces = rows is not None
        monkeypatch.setattr(
            head, "holding", type(head).holding.__get__(head) if by_pieces else lambda: nullcontext(False)
        )
        head.zero_grad()
        kept, total = [], []
        for step in MTP(head, MTPConfig(losses=losses)).steps(LMOutput(out.hidden), positions, ranked=True):
            assert step.light == (by_pieces and head.private is None and head.shared_pass)
            assert step.right is not None
            assert step.ranks is not None
            kept += [step.loss.detach(), step.right, step.ranks]
            if together:
                total.append(step.weight * step.loss)
            else:
                (step.weight * step.loss).backward(retain_graph=True)
        if together:
            torch.stack(total).sum().backward()
        found.append(kept + [p.grad for p in head.parameters() if p.grad is not None])
    assert any(bool(grad.abs().sum() > 0) for grad in found[0][-3:])
    for once, *others in zip(*found, strict=True):
        for other in others:
            torch.testing.assert_close(once, other, rtol=1e-4, atol=1e-6)


def test_what_is_held_of_the_trunk_is_let_go_when_training_stops_half_way(lm: TextLM) -> None:  # noqa: F811
    head, positions = drafting(lm), batch()
    steps = MTP(head, MTPConfig()).steps(states(lm, positions, head.taps), positions)
    next(steps)
    assert head._held is not None
    steps.close()
    assert head._held is None


def test_a_trunk_that_learns_is_not_held(lm: TextLM) -> None:  # noqa: F811
    head = drafting(lm)
    weight = lm.output.weight
    weight.requires_grad_(True)
    try:
        with head.holding() as held:
            assert not held
    finally:
        weight.requires_grad_(False)


@pytest.mark.parametrize("losses", [{"soft": 1.0}, {"hard": 1.0}], ids=["soft", "hard"])
@pytest.mark.parametrize("name", ["fastmtp", "medusa", "eagle3"])
def test_a_term_by_pieces_keeps_no_scores(
    lm: TextLM,  # noqa: F811
    name: str,
    losses: dict[Any, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where all rows are one piece."""
    positions, head = batch(), drafting(lm, name)
    made: list[weakref.ref[Tensor]] = []
    scores = head.scores

    def watched(*args: Any) -> Tensor:
        found = scores(*args)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(head, "scores", watched)
    steps = list(MTP(head, MTPConfig(losses=losses)).steps(states(lm, positions, head.taps), positions))
    assert len(made) >= len(steps) == len(head.offsets)
    assert [reference() for reference in made if reference() is not None] == []
    torch.stack([step.loss for step in steps]).sum().backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in head.parameters())


def test_new_weights_are_not_those_that_were_held(lm: TextLM) -> None:  # noqa: F811
    head, hidden = drafting(lm), torch.randn(2, lm.dim)
    with head.holding() as held:
        assert held
        before = head.unembed(hidden)
        head.set_vocabulary(torch.arange(3, VOCAB))
        assert not torch.equal(head.unembed(hidden), before)
        assert torch.equal(head.unembed(hidden)[:, :-3], before[:, 3:])
