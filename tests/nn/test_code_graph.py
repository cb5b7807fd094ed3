"""The search among ids that exist: neighbours by hand, the best item as if all had been scored, and its cost."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from speech_mtp.nn.code_graph import Search, best_items, neighbours


def clustered(count: int, digits: int, size: int, seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    """Items in clusters: ids and the vectors of their digits; ids that are alike have vectors that are alike."""
    rng = torch.Generator().manual_seed(seed)
    angle = torch.arange(size) / size * torch.pi
    vectors = [torch.stack([angle.cos(), angle.sin()], 1) for _ in range(digits)]
    centre = torch.randint(size, (count // 50, digits), generator=rng)
    jitter = torch.randint(-3, 4, (count, digits), generator=rng)
    ids = (centre[torch.randint(len(centre), (count,), generator=rng)] + jitter).clamp(0, size - 1)
    return ids.unique(dim=0), vectors


def test_neighbours_by_hand() -> None:
    ids = torch.tensor([[0, 0], [1, 0], [2, 2], [2, 1]])
    vectors = [torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 5.0]])] * 2
    found = neighbours(ids, vectors, 1)[:, 0].tolist()
    # Cosines: of 0 and 1 they are 0.71, of 1 and 2 too, of 0 and 2 none.
    assert found[0] == 1
    assert found[2] == 3
    assert neighbours(ids, vectors, 3)[0].tolist()[0] == 1
    for item, others in enumerate(neighbours(ids, vectors, 3).tolist()):
        assert sorted([*others, item]) == [0, 1, 2, 3]


@pytest.mark.parametrize("count", [0, 4])
def test_neighbours_that_there_are_not(count: int) -> None:
    with pytest.raises(ValueError, match="3 neighbours each"):
        neighbours(torch.arange(4)[:, None], [torch.eye(4)], count)


def test_neighbours_do_not_depend_on_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, vectors = clustered(400, 4, 40)
    whole = neighbours(ids, vectors, 5)
    monkeypatch.setattr("speech_mtp.nn.code_graph.BLOCK", 7)
    unit = torch.cat([F.normalize(v)[ids[:, c]] for c, v in enumerate(vectors)], 1)
    parts = neighbours(ids, vectors, 5)
    for one, other in ((whole, parts),):
        mine, theirs = ((unit[at] * unit[:, None]).sum(-1) for at in (one, other))
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_long_vectors_are_compared_in_random_directions(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, _ = clustered(500, 4, 40)
    vectors = [torch.randn(40, 200, generator=torch.Generator().manual_seed(c)) for c in range(4)]
    short = neighbours(ids, vectors, 10)
    monkeypatch.setattr("speech_mtp.nn.code_graph.DIRECTIONS", 800)
    exact = neighbours(ids, vectors, 10)
    shared = [len(set(a) & set(b)) for a, b in zip(short.tolist(), exact.tolist(), strict=True)]
    assert sum(shared) / len(shared) > 6


def test_few_items_are_all_scored_the_best_first() -> None:
    worth = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]])
    items, scores = best_items(torch.zeros(3, 1, dtype=torch.long), lambda at: worth.gather(1, at), 2, Search(beams=2))
    assert items.tolist() == [[0, 2], [1, 2]]
    assert scores.tolist() == [[3.0, 2.0], [5.0, 4.0]]


def test_the_search_finds_what_scoring_all_finds_and_scores_few() -> None:
    ids, vectors = clustered(6_000, 6, 64)
    edges = neighbours(ids, vectors, 16)
    rng = torch.Generator().manual_seed(1)
    rows = 40
    wanted = ids[torch.randint(len(ids), (rows,), generator=rng)]
    # What a model says that looks for these items and is not sure of any digit.
    laws = [
        (8 * F.normalize(v) @ F.normalize(v)[wanted[:, c]].T).T + 0.1 * torch.randn(rows, 64, generator=rng)
        for c, v in enumerate(vectors)
    ]
    looked: list[int] = []

    def worth(items: Tensor) -> Tensor:
        looked.append(items.shape[1])
        found: Tensor = torch.stack([law.gather(1, ids[:, c][items]) for c, law in enumerate(laws)]).sum(0)
        return found

    everyone, _ = best_items(edges, worth, rows, Search(exhaustive=10**6))
    looked.clear()
    items, scores = best_items(edges, worth, rows, Search(beams=24, steps=4, exhaustive=0))
    assert sum(looked) < 0.6 * len(ids)
    assert torch.equal(scores, worth(items))
    assert bool((scores[:, :-1] >= scores[:, 1:]).all())
    assert all(len(set(row)) == len(row) for row in items.tolist())
    hits = float((items[:, 0] == everyone[:, 0]).float().mean())
    assert hits > 0.9
    spread = best_items(edges, worth, rows, Search(beams=24, steps=0, exhaustive=0))[0]
    assert hits > float((spread[:, 0] == everyone[:, 0]).float().mean()) + 0.3  # it is the walk that finds them


def test_a_row_alone_finds_what_it_finds_among_others() -> None:
    ids, vectors = clustered(1_000, 4, 32)
    edges = neighbours(ids, vectors, 8)
    worth = torch.randn(3, len(ids), generator=torch.Generator().manual_seed(2))
    search = Search(beams=4, steps=3, exhaustive=0)
    together, _ = best_items(edges, lambda at: worth.gather(1, at), 3, search)
    for row in range(3):
        alone, _ = best_items(edges, lambda at, row=row: worth[row : row + 1].gather(1, at), 1, search)
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("count", [2, 5])
def test_there_may_be_fewer_items_than_beams(count: int) -> None:
    worth = torch.randn(2, count, generator=torch.Generator().manual_seed(0))
    edges = torch.stack([torch.roll(torch.arange(count), 1)], 1)
    items, scores = best_items(edges, lambda at: worth.gather(1, at), 2, Search(beams=32, steps=3, exhaustive=0))
    assert torch.equal(items[:, 0], worth.argmax(1))
    assert torch.equal(scores[:, 0], worth.amax(1))


def test_an_item_that_comes_twice_counts_once() -> None:
    edges = torch.tensor([[1, 2], [0, 2], [0, 1], [0, 1]])
    worth = torch.tensor([[1.0, 2.0, 3.0, 0.0]])
    items, scores = best_items(edges, lambda at: worth.gather(1, at), 1, Search(beams=3, steps=2, exhaustive=0))
    assert items.tolist() == [[2, 1, 0]]
    assert scores.tolist() == [[3.0, 2.0, 1.0]]
