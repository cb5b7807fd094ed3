"""What is kept of a draft, against slow references; and the laws that come out, by integrating over all chances."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from speech_mtp.decoding import acceptance
from speech_mtp.lm.cache import ancestors_of

VOCAB = 4


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[int], list[int], list[int]]:
    """Parents (-1 past node 0: a node that only fills the row), tokens, and the trunk's choice after every node."""
    m = draw(st.integers(1, 8))
    parents = [-1] + [draw(st.integers(-1, i - 1)) for i in range(1, m)]
    tokens = draw(st.lists(st.integers(0, 1), min_size=m, max_size=m))
    return parents, tokens, draw(st.lists(st.integers(0, 1), min_size=m, max_size=m))


def paths_from_node_0(parents: list[int]) -> list[list[int]]:
    """Every path that starts at node 0, by its last node."""
    paths: dict[int, list[int]] = {0: [0]}
    for i, parent in enumerate(parents[1:], 1):
        if parent in paths:
            paths[i] = [*paths[parent], i]
    return list(paths.values())


def tensors(*lists: list[int]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor([one]) for one in lists)


@given(trees())
def test_matching_keeps_the_longest_right_path_and_the_first_of_equals(
    tree: tuple[list[int], list[int], list[int]],
) -> None:
    parents, tokens, choice = tree
    right = [p for p in paths_from_node_0(parents) if all(tokens[i] == choice[parents[i]] for i in p[1:])]
    best = max(right, key=lambda p: (len(p), -p[-1]))
    t, above, c = tensors(tokens, parents, choice)
    path, length, stop = acceptance.matching(t, above, c)
    assert path[0, : len(best)].tolist() == best
    assert (path[0, len(best) :] == -1).all()
    assert (length.item(), stop.item()) == (len(best), best[-1])


@given(trees())
def test_lossy_rules_keep_the_longest_path_of_good_nodes(tree: tuple[list[int], list[int], list[int]]) -> None:
    parents, tokens, _ = tree
    t, above = tensors(tokens, parents)
    scores = torch.randn(1, len(tokens), VOCAB, generator=torch.Generator().manual_seed(len(tokens)))
    p = scores.softmax(-1)

    def typical(i: int) -> bool:
        law = p[0, parents[i]]
        entropy = -(law * (law + 1e-5).log()).sum()
        return bool(law[tokens[i]] > min(0.3, 0.6 * torch.exp(-entropy)))

    def among_two(i: int) -> bool:
        return sorted(scores[0, parents[i]].tolist(), reverse=True).index(scores[0, parents[i], tokens[i]].item()) < 2

    for good, kept in (
        (typical, acceptance.typical(t, above, p, 0.3, 0.6)),
        (among_two, acceptance.among_top(t, above, scores, 2)),
    ):
        best = max(len(path) for path in paths_from_node_0(parents) if all(good(i) for i in path[1:]))
        assert kept[1].item() == best


def test_a_draft_that_is_never_or_always_right() -> None:
    tokens, parents = tensors([9, 1, 2, 3], [-1, 0, 1, 2])
    assert acceptance.matching(tokens, parents, torch.tensor([[1, 2, 3, 0]]))[1].item() == 4
    assert acceptance.matching(tokens, parents, torch.tensor([[0, 2, 3, 0]]))[1].item() == 1
    certain = torch.eye(VOCAB)[[1, 2, 3, 0]][None]
    uniform = torch.full((1, 4), 1 - 2**-24)
    assert acceptance.rejection_chain(tokens[:, 1:], certain, None, uniform[:, 1:])[0].item() == 3
    stop, rest = acceptance.sibling_rejection(tokens, parents, certain, uniform)
    assert stop.item() == 3
    assert rest[0].tolist() == [1, 0, 0, 0]
    kept, rest = acceptance.rejection_chain(tokens[:, 1:], certain[:, [1, 0, 2, 3]], None, torch.full((1, 3), 2**-25))
    assert kept.item() == 0
    assert rest[0].tolist() == [0, 0, 1, 0]


def test_nothing_drafted_is_the_trunk_s_own_law() -> None:
    p = torch.tensor([[[0.5, 0.25, 0.25]]])
    kept, rest = acceptance.rejection_chain(torch.zeros(1, 0, dtype=torch.long), p, None, torch.zeros(1, 0))
    assert kept.item() == 0
    assert torch.equal(rest, p[:, 0])
    stop, rest = acceptance.sibling_rejection(torch.zeros(1, 1, dtype=torch.long), torch.tensor([[-1]]), p, p[:, :, 0])
    assert stop.item() == 0
    assert torch.equal(rest, p[:, 0])


@pytest.mark.parametrize("stochastic", [True, False])
def test_a_residual_that_rounding_has_emptied_is_the_trunk_s_own_law(stochastic: bool) -> None:
    """p and q differ in their last bit, or p in its sum from 1: a draft can be refused with nothing left to draw."""
    p = torch.tensor([[[0.0, 1 - 2**-23, 0.0, 0.0], [0.25] * 4]])
    q = torch.tensor([[[0.0, 1.0, 0.0, 0.0]]]) if stochastic else None
    kept, rest = acceptance.rejection_chain(torch.tensor([[1]]), p, q, torch.full((1, 1), 1 - 2**-24))
    assert kept.item() == 0
    assert rest[0].tolist() == [0, 1, 0, 0]


def random_laws(count: int, seed: int) -> Tensor:
    """``[count, 3]``: some with tokens that are excluded."""
    scores = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed)) * 1.5
    scores[0, 2] = float("-inf")
    return scores.softmax(-1)


@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_tokens_of_a_chain_have_the_trunk_s_law(stochastic: bool, seed: int) -> None:
    """Two drafts over three tokens, all of them weighed by their own law, all chances on a grid."""
    p, q, grid = random_laws(13, seed), random_laws(5, seed + 10)[1:], 60
    first, second = p[0], p[1:4]  # the trunk's law of the first token, and of the second given the first
    law = torch.zeros(3, 3)
    u = (torch.arange(grid) + 0.5) / grid
    chance = torch.cartesian_prod(u, u)
    guesses = product(range(3), repeat=2) if stochastic else [(int(q[0].argmax()), 1)]
    for x, y in guesses:
        weight = float(q[0, x] * q[1 + x, y]) if stochastic else 1.0
        if weight == 0:
            continue
        n = len(chance)
        laws = torch.stack([first, second[x], p[4 + 3 * x + y]]).expand(n, -1, -1)
        drawn = torch.stack([q[0], q[1 + x]]).expand(n, -1, -1) if stochastic else None
        kept, rest = acceptance.rejection_chain(torch.tensor([[x, y]]).expand(n, -1), laws, drawn, chance)
        assert torch.allclose(rest.sum(1), torch.ones(n))
        share = weight / n
        law += share * (kept == 0).sum() * (rest[kept == 0].mean(0)[:, None] * second if (kept == 0).any() else 0)
        law[x] += share * rest[kept == 1].sum(0)
        law[x, y] += share * (kept == 2).sum()
    assert torch.allclose(law, first[:, None] * second, atol=1.5 / grid)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_tree_with_siblings_has_the_trunk_s_law(seed: int) -> None:
    """Two siblings after node 0, two children of the first one, and a node that only fills the row."""
    tokens, parents = tensors([0, 1, 0, 2, 0, 1], [-1, 0, 0, 1, 1, -1])
    p, grid = random_laws(6, seed), 16
    u = (torch.arange(grid) + 0.5) / grid
    chance = torch.cartesian_prod(u, u, u, u)
    n = len(chance)
    uniform = torch.cat([torch.zeros(n, 1), chance, torch.zeros(n, 1)], 1)
    stop, rest = acceptance.sibling_rejection(tokens.expand(n, -1), parents.expand(n, -1), p.expand(n, -1, -1), uniform)
    assert set(stop.tolist()) <= {0, 1, 2, 3, 4}
    first = rest[stop == 0].sum(0) / n
    through = torch.isin(stop, torch.tensor([1, 3, 4]))
    first[1] += through.sum() / n
    first[0] += (stop == 2).sum() / n
    assert torch.allclose(first, p[0], atol=2 / grid)
    second = rest[stop == 1].sum(0)
    second[2] += (stop == 3).sum()
    second[0] += (stop == 4).sum()
    assert torch.allclose(second / through.sum(), p[1], atol=2 / grid)


def test_siblings_that_share_all_of_the_law_leave_no_gap() -> None:
    """When the last sibling has all that is left it is certain; the same token twice has no second chance."""
    tokens, parents = tensors([0, 1, 1, 2], [-1, 0, 0, 0])
    p = torch.tensor([[0.0, 0.5, 0.5]]).expand(1, 4, -1)
    stop, rest = acceptance.sibling_rejection(tokens, parents, p, torch.full((1, 4), 1 - 2**-24))
    assert stop.item() == 3
    assert torch.isfinite(rest).all()


def test_path_to_lists_the_nodes_in_order() -> None:
    (parents,) = tensors([-1, 0, 0, 2, 1, 3])
    path, length, stop = acceptance.path_to(torch.tensor([5]), ancestors_of(parents))
    assert path.tolist() == [[0, 2, 3, 5, -1, -1]]
    assert (length.item(), stop.item()) == (4, 5)
