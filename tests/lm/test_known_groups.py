"""Groups that exist are drawn, by their chances, and nothing else; saved and loaded with what is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from speech_mtp import hub
from speech_mtp.lm.known_groups import Cosine, Known
from speech_mtp.lm.outputs import build_output
from speech_mtp.nn.code_graph import Search

SIZES = (3, 5, 4, 5)
GROUPS = torch.tensor([[0, 0, 0], [0, 1, 2], [4, 3, 1], [2, 2, 2], [4, 3, 1], [4, 0, 1]])


def layer(dim: int = 6, sizes: tuple[int, ...] = SIZES) -> Known:
    torch.manual_seed(0)
    made = Known(dim, sizes)
    for block in made.blocks:
        torch.nn.init.normal_(block.weight)  # type: ignore[arg-type]
    return made


def test_a_channel_is_a_cosine_over_a_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speech_mtp.lm.known_groups.TEMPERATURE", 0.5)
    made = Cosine(2, (2,))
    made.codes[0].weight.data = torch.tensor([[3.0, 0.0], [0.0, -7.0]])
    hidden = torch.tensor([[2.0, 2.0]])
    (logits,) = made.score(hidden, hidden)
    assert torch.allclose(logits, torch.tensor([[0.5**0.5 / 0.5, -(0.5**0.5) / 0.5]]))
    made.blocks[0].bias.data = torch.tensor([0.0, 1.0])  # now SiLU(1) = 0.731 is added to the second number
    place = F.normalize(torch.tensor([2.0, 2.0 + 1 / (1 + torch.tensor(-1.0).exp())]), dim=0)
    (logits,) = made.score(hidden, hidden)
    assert torch.allclose(logits, torch.stack([place[0], -place[1]])[None] / 0.5)


@torch.no_grad()
def test_the_law_is_that_of_the_groups_that_exist() -> None:
    """Every conditional that is offered, multiplied up, is exp(sum of log p) over the known groups."""
    made = layer()
    made.know(GROUPS)
    hidden = torch.randn(1, 6)
    scores = [s.log_softmax(-1)[0] for s in made.score(hidden, hidden)]
    known = GROUPS.unique(dim=0)
    worth = torch.stack([scores[c + 1][known[:, c]] for c in range(3)]).sum(0)
    expected = worth.softmax(0)
    total = 0.0
    for group, chance in zip(known.tolist(), expected.tolist(), strict=True):
        log = 0.0

        def pick(channel: int, logits: Tensor, group: list[int] = group) -> Tensor:
            nonlocal log
            if channel:
                log += float(logits.log_softmax(-1)[0, group[channel - 1]])
                return torch.tensor([group[channel - 1]])
            assert torch.allclose(logits[0], scores[0])
            return torch.tensor([1])

        assert made.sample(hidden, pick).tolist() == [[1, *group]]
        assert float(torch.tensor(log).exp()) == pytest.approx(chance, abs=1e-5)
        total += chance
    assert total == pytest.approx(1)


@torch.no_grad()
def test_whatever_is_drawn_exists() -> None:
    made = layer()
    rng = torch.Generator().manual_seed(3)

    def pick(channel: int, logits: Tensor) -> Tensor:
        return torch.multinomial(logits.softmax(-1), 1, generator=rng)[:, 0]

    hidden = torch.randn(200, 6, generator=rng)
    free = made.sample(hidden, pick)[:, 1:]
    known = {tuple(group) for group in GROUPS.tolist()}
    assert not {tuple(group) for group in free.tolist()} <= known
    made.know(GROUPS)
    assert {tuple(group) for group in made.sample(hidden, pick)[:, 1:].tolist()} == known


@torch.no_grad()
def test_a_guess_that_does_not_exist_is_answered() -> None:
    made = layer()
    made.know(GROUPS)
    tokens = made.sample(torch.randn(2, 6), lambda channel, logits: torch.full((2,), 3 if channel == 1 else 0))
    assert tokens.tolist() == [[0, 3, 0, 0]] * 2

    def best(channel: int, logits: Tensor) -> Tensor:
        assert bool(logits.isfinite().any(1).all())
        return logits.argmax(-1) if channel != 1 else torch.full((2,), 3)

    made.sample(torch.randn(2, 6), best)


@torch.no_grad()
def test_the_graph_finds_what_all_groups_give() -> None:
    sizes = (3, 40, 40, 40, 40)
    made = layer(12, sizes)
    rng = torch.Generator().manual_seed(1)
    centres = torch.randint(40, (60, 4), generator=rng)
    groups = (centres[torch.randint(60, (3_000,), generator=rng)] + torch.randint(0, 3, (3_000, 4), generator=rng)) % 40
    made.know(groups)
    hidden = torch.randn(50, 12, generator=rng)
    scores = [s.log_softmax(-1) for s in made.score(hidden, hidden)][1:]
    every, _ = made.best(scores)
    made.search = Search(beams=32, steps=5, exhaustive=0)
    walked, _ = made.best(scores)
    assert float((every[:, 0] == walked[:, 0]).float().mean()) > 0.8


def test_the_most_frequent_groups_are_known() -> None:
    made = layer()
    made.know(GROUPS, most=1 + 1)
    assert [4, 3, 1] in made.ids.tolist()
    assert made.ids.shape == (2, 3)
    assert made.edges.shape == (2, 1)


def test_of_groups_that_are_as_frequent_a_sample_from_all_over_is_known() -> None:
    made = layer(6, (3, 1000, 4))
    groups = torch.stack([torch.arange(1000), torch.arange(1000) % 4], 1)
    made.know(torch.cat([groups, groups[700:710]]), most=200)
    known = made.ids[:, 0]
    assert set(range(700, 710)) <= set(known.tolist())
    assert 400 < float(known.float().mean()) < 600
    assert int((known > 500).sum()) > 60


def test_one_group_is_not_enough() -> None:
    with pytest.raises(ValueError, match="1 different groups"):
        layer().know(GROUPS[:1])


@torch.no_grad()
def test_what_is_known_is_saved(tmp_path: Path) -> None:
    from tests.tiny import tiny_lm

    lm = tiny_lm((20, 10), output="known")
    assert isinstance(lm.output, Known)
    lm.output.know(torch.randint(10, (30, 4)))
    hub.save_speech_lm(lm, tmp_path)
    again = hub.load_speech_lm(tmp_path)
    assert isinstance(again.output, Known)
    assert torch.equal(again.output.ids, lm.output.ids)
    assert torch.equal(again.output.edges, lm.output.edges)
    assert isinstance(build_output("known", 4, (2, 3)), Known)


@pytest.mark.gpu
@torch.no_grad()
def test_a_gpu_draws_the_same() -> None:
    made = layer()
    made.know(GROUPS)
    hidden = torch.randn(20, 6)

    def best(channel: int, logits: Tensor) -> Tensor:
        return logits.argmax(-1)

    expected = made.sample(hidden, best)
    made.cuda()
    made.know(GROUPS.cuda())
    assert torch.equal(made.sample(hidden.cuda(), best).cpu(), expected)
