"""CTC with label priors: the loss and its gradient by enumeration of all paths."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from speech_mtp.nn.ctc import Prior, ctc

V, T = 3, 4


def spelled(path: tuple[int, ...]) -> list[int]:
    return [a for a, _ in itertools.groupby(path) if a != 0]


def enumerated(given: Tensor, target: list[int]) -> Tensor:
    """Minus the log of the sum over all paths that spell ``target`` of ``given [T, V]``."""
    paths = [path for path in itertools.product(range(V), repeat=len(given)) if spelled(path) == target]
    return -torch.stack([sum(given[t, s] for t, s in enumerate(path)) for path in paths]).logsumexp(0)  # type: ignore[arg-type]


@pytest.mark.parametrize("scored", [False, True])
def test_loss_and_gradient_are_those_of_all_paths(scored: bool) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, T, V, dtype=torch.float64, requires_grad=True)
    scores = torch.tensor([-0.1, -0.9, -0.6], dtype=torch.float64) if scored else None
    targets, frames, lengths = torch.tensor([1, 2, 2]), torch.tensor([T, T - 1]), torch.tensor([2, 1])
    loss = ctc(logits.log_softmax(-1), targets, frames, lengths, scores)
    found = torch.autograd.grad(loss, logits)[0]

    given = logits.log_softmax(-1) - (scores if scored else 0)
    truth = (enumerated(given[0], [1, 2]) / 2 + enumerated(given[1][: T - 1], [2])) / 2
    torch.testing.assert_close(loss, truth)
    torch.testing.assert_close(found, torch.autograd.grad(truth, logits)[0])


def test_a_row_that_cannot_be_said_counts_nothing() -> None:
    logits = torch.randn(1, 2, V, requires_grad=True)
    loss = ctc(logits.log_softmax(-1), torch.tensor([1, 1]), torch.tensor([2]), torch.tensor([2]), torch.zeros(V) - 1)
    assert loss.item() == 0
    assert float(torch.autograd.grad(loss, logits)[0].abs().max()) == 0


def test_a_prior_spreads_a_symbol_over_its_frames() -> None:
    """A long sound, heard without doubt: plain CTC hardly says it, with the prior it is said all through."""
    heard = F.one_hot(torch.tensor([0] * 4 + [1] * 8 + [2] * 4 + [0] * 4), 3).float()[None]
    said = {}
    for power in (0.0, 0.5):
        torch.manual_seed(0)
        net, prior = torch.nn.Linear(3, V), Prior(V, decay=0.9)
        optimizer = torch.optim.Adam(net.parameters(), 0.05)
        for _ in range(300):
            log_probs = net(heard).log_softmax(-1)
            prior.update(log_probs, torch.ones(1, 20, 1))
            loss = ctc(log_probs, torch.tensor([1, 2]), torch.tensor([20]), torch.tensor([2]), prior.scores(power))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        said[power] = log_probs.exp()[0, 4:12, 1].mean().item()
    assert said[0.5] > 0.9 > 0.5 > said[0.0]
