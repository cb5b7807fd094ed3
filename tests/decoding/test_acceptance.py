"""What is kept of a draft, against slow references; and the laws that come out, by integrating over all chances."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from speech_mtp.decoding import acceptance
from speech_mtp.decoding.laws import Choose
from speech_mtp.types import Draft, Verdict

VOCAB = 4


@dataclass
class Row:
    """Parents (-1 past node 0: a node that only fills the row), tokens, the trunk's own draw after every node, which
    nodes end the row."""

    parents: list[int]
    tokens: list[int]
    choice: list[int]
    ended: list[bool]


@st.composite
def rows(draw: st.DrawFn) -> list[Row]:
    """Rows of one batch."""
    m, found = draw(st.integers(1, 8)), []
    for _ in range(draw(st.integers(1, 3))):
        parents = [-1] + [draw(st.integers(-1, i - 1)) for i in range(1, m)]
        tokens, choice = (draw(st.lists(st.integers(0, 1), min_size=m, max_size=m)) for _ in range(2))
        ended = draw(st.lists(st.sampled_from([False, False, False, True]), min_size=m, max_size=m))
        found.append(Row(parents, tokens, choice, [False, *ended[1:]]))
    return found


def paths_from_node_0(parents: list[int]) -> list[list[int]]:
    """Every path that starts at node 0, by its last node."""
    paths: dict[int, list[int]] = {0: [0]}
    for i, parent in enumerate(parents[1:], 1):
        if parent in paths:
            paths[i] = [*paths[parent], i]
    return list(paths.values())


def tensors(*lists: list[int]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor([one]) for one in lists)


def draft_of(found: list[Row], channels: int = 1, depth: int | None = None) -> Draft:
    tokens = torch.tensor([row.tokens for row in found])
    return Draft(tokens[..., None].expand(-1, -1, channels), torch.tensor([row.parents for row in found]), depth=depth)


def drawing(choice: Tensor) -> Choose:
    """The draws ``choice [B, M, C]`` after every node."""
    return lambda nodes, depth: choice.gather(1, nodes[:, None, None].expand(-1, 1, choice.shape[-1]))[:, 0]


def matched(found: list[Row], depth: int | None = None) -> Verdict:
    choice, ended = (torch.tensor([getattr(row, name) for row in found]) for name in ("choice", "ended"))
    return acceptance.matching(draft_of(found, depth=depth), drawing(choice[..., None]), ended)


def walked(row: Row) -> tuple[list[int], int, int, int]:
    """The path, the sure token after it, and how many depths were tried and kept, one node at a time."""
    path, tried, kept = [0], 0, 0
    while True:
        draw = row.choice[path[-1]]
        children = [i for i, parent in enumerate(row.parents) if parent == path[-1]]
        right = [i for i in children if row.tokens[i] == draw]
        tried, kept = tried + bool(children), kept + bool(right)
        if not right or row.ended[right[0]]:
            return path, draw, tried, kept
        path.append(right[0])


@given(rows())
def test_matching_keeps_what_guessed_the_trunk_s_own_draws(found: list[Row]) -> None:
    deepest = max(len(path) - 1 for row in found for path in paths_from_node_0(row.parents))
    for depth in (None, deepest):
        verdict = matched(found, depth)
        for b, row in enumerate(found):
            path, sure, tried, kept = walked(row)
            assert verdict.path[b].tolist() == path + [-1] * (len(row.tokens) - len(path))
            assert (verdict.length[b].item(), verdict.stop[b].item()) == (len(path), path[-1])
            assert verdict.next[b].tolist() == [sure]
            assert (verdict.tried[b].item(), verdict.kept[b].item()) == (tried, kept)


CHAIN = [-1, 0, 1, 2]
FORK = [-1, 0, 0, 1]


@pytest.mark.parametrize(
    ("parents", "choice", "ended", "path", "sure", "tried", "kept"),
    [
        (CHAIN, [1, 2, 3, 0], [], [0, 1, 2, 3], 0, 3, 3),  # always right
        (CHAIN, [0, 2, 3, 0], [], [0], 0, 1, 0),  # never right; what would follow a wrong draft is not judged
        (CHAIN, [1, 0, 3, 0], [], [0, 1], 0, 2, 1),  # sometimes right
        (CHAIN, [1, 2, 3, 0], [1], [0], 1, 1, 1),  # a row that ends with its first draft: it is the sure position
        (CHAIN, [1, 2, 3, 0], [3], [0, 1, 2], 3, 3, 3),  # and one that ends with its last
        (CHAIN, [0, 2, 3, 0], [1, 2, 3], [0], 0, 1, 0),  # what ends a wrong draft ends nothing
        (CHAIN, [1, 2, 3, 0], [2, 3], [0, 1], 2, 2, 2),
        (FORK, [2, 0, 1, 0], [], [0, 2], 1, 1, 1),  # nothing was drafted after the second sibling
        (FORK, [1, 3, 0, 2], [], [0, 1, 3], 2, 2, 2),
        (FORK, [1, 0, 0, 0], [], [0, 1], 0, 2, 1),
        (FORK, [3, 0, 0, 0], [], [0], 3, 1, 0),  # right by the token, but of another parent
        ([-1] * 4, [1, 2, 3, 0], [], [0], 1, 0, 0),  # nodes that only fill the row
    ],
)
def test_contrived_drafts(
    parents: list[int], choice: list[int], ended: list[int], path: list[int], sure: int, tried: int, kept: int
) -> None:
    """Tokens 1, 2 and 3 are drafted after node 0, which holds a 9."""
    verdict = matched([Row(parents, [9, 1, 2, 3], choice, [i in ended for i in range(4)])])
    assert verdict.path[0, : len(path)].tolist() == path
    assert (verdict.length.item(), verdict.next.item()) == (len(path), sure)
    assert (verdict.tried.item(), verdict.kept.item()) == (tried, kept)


def test_a_group_is_kept_only_if_all_of_its_channels_are_right() -> None:
    tokens = torch.tensor([[[9, 9], [1, 2], [1, 3], [4, 4]]]).expand(3, -1, -1)
    draft = Draft(tokens, torch.tensor([[-1, 0, 0, 2]]).expand(3, -1))
    choice = torch.tensor([[[1, 3], [0, 0], [4, 4], [5, 6]]]).repeat(3, 1, 1)
    choice[1, 0, 1] = 4  # half right
    choice[2, 2, 0] = 0
    verdict = acceptance.matching(draft, drawing(choice), torch.zeros(3, 4, dtype=torch.bool))
    assert verdict.path.tolist() == [[0, 2, 3, -1], [0, -1, -1, -1], [0, 2, -1, -1]]
    assert verdict.next.tolist() == [[5, 6], [1, 4], [0, 4]]


def test_a_draw_is_asked_for_with_the_depth_of_its_node() -> None:
    """It says which noise is drawn with; siblings are numbered anyhow."""
    asked: list[tuple[list[int], int]] = []

    def choose(nodes: Tensor, depth: int) -> Tensor:
        asked.append((nodes.tolist(), depth))
        return torch.tensor([[1], [7]])

    draft = Draft(torch.tensor([[9, 0, 1, 1]] * 2)[..., None], torch.tensor([[-1, 0, 0, 2]] * 2))
    verdict = acceptance.matching(draft, choose, torch.zeros(2, 4, dtype=torch.bool))
    assert asked == [([0, 0], 0), ([2, 0], 1), ([3, 0], 2)]
    assert verdict.length.tolist() == [3, 1]
    assert verdict.next.tolist() == [[1], [7]]


@given(rows())
def test_lossy_rules_keep_the_longest_path_of_good_nodes(found: list[Row]) -> None:
    row, draft = found[0], draft_of(found[:1])
    scores = torch.randn(1, len(row.tokens), VOCAB, generator=torch.Generator().manual_seed(len(row.tokens)))
    p = scores.softmax(-1)

    def typical(i: int) -> bool:
        law = p[0, row.parents[i]]
        entropy = -(law * (law + 1e-5).log()).sum()
        return bool(law[row.tokens[i]] > min(0.3, 0.6 * torch.exp(-entropy)))

    def among_two(i: int) -> bool:
        after = scores[0, row.parents[i]]
        return sorted(after.tolist(), reverse=True).index(after[row.tokens[i]].item()) < 2

    for good, stop in (
        (typical, acceptance.typical(draft, p, 0.3, 0.6)),
        (among_two, acceptance.among_top(draft, scores, 2)),
    ):
        best = max(len(path) for path in paths_from_node_0(row.parents) if all(good(i) for i in path[1:]))
        path, length = acceptance.path_to(stop, draft)
        assert length.item() == best
        assert all(good(i) for i in path[0, 1:best].tolist())


@given(rows(), st.data())
def test_a_path_is_kept_until_its_first_node_that_ends_the_row(found: list[Row], data: st.DataObject) -> None:
    paths = [data.draw(st.sampled_from(paths_from_node_0(row.parents))) for row in found]
    m = len(found[0].tokens)
    padded = torch.tensor([path + [-1] * (m - len(path)) for path in paths])
    lengths, after = torch.tensor([len(path) for path in paths]), torch.tensor([[5]] * len(found))
    ended = torch.tensor([row.ended for row in found])
    verdict = acceptance.until_ended(draft_of(found), padded, lengths, after, ended)
    for b, (row, path) in enumerate(zip(found, paths, strict=True)):
        over = next((at for at, node in enumerate(path) if row.ended[node]), None)
        kept = path if over is None else path[:over]
        more = over is None and path[-1] in row.parents  # a draft after the path was refused
        assert verdict.path[b].tolist() == kept + [-1] * (m - len(kept))
        assert verdict.length[b].item() == len(kept)
        assert verdict.next[b].item() == (5 if over is None else row.tokens[path[over]])
        assert verdict.kept[b].item() == (len(path) - 1 if over is None else over)
        assert verdict.tried[b].item() == verdict.kept[b].item() + more


def test_a_chain_by_rejection_that_is_never_or_always_right() -> None:
    (tokens,) = tensors([1, 2, 3])
    certain = torch.eye(VOCAB)[[1, 2, 3, 0]][None]
    assert acceptance.rejection_chain(tokens, certain, None, torch.full((1, 3), 1 - 2**-24))[0].item() == 3
    kept, rest = acceptance.rejection_chain(tokens, certain[:, [1, 0, 2, 3]], None, torch.full((1, 3), 2**-25))
    assert kept.item() == 0
    assert rest[0].tolist() == [0, 0, 1, 0]


def test_nothing_drafted_is_the_trunk_s_own_law() -> None:
    p = torch.tensor([[[0.5, 0.25, 0.25]]])
    kept, rest = acceptance.rejection_chain(torch.zeros(1, 0, dtype=torch.long), p, None, torch.zeros(1, 0))
    assert kept.item() == 0
    assert torch.equal(rest, p[:, 0])
    assert matched([Row([-1], [9], [2], [False])]).next.item() == 2


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
def test_a_tree_with_siblings_keeps_the_sum_of_their_chances_and_has_the_trunk_s_law(seed: int) -> None:
    """Two siblings after node 0, two children of the first one, and a node that only fills the row; the trunk's draws
    after every node are all pairs, weighed by their own law."""
    row = Row([-1, 0, 0, 1, 1, -1], [0, 1, 0, 2, 0, 1], [], [False] * 6)
    p = random_laws(6, seed)
    first, second, kept = torch.zeros(3), torch.zeros(3), torch.zeros(3)
    for x, y in product(range(3), repeat=2):
        chance = float(p[0, x] * p[1, y])
        verdict = matched([replace(row, choice=[x, y, 0, 0, 0, 0])])
        said = [*(row.tokens[i] for i in verdict.path[0, 1 : verdict.length].tolist()), verdict.next.item()]
        first[said[0]] += chance
        if said[0] == 1:
            second[said[1]] += chance
        kept[verdict.kept] += chance
    assert torch.allclose(first, p[0])
    assert torch.allclose(second / second.sum(), p[1])
    assert torch.isclose(kept[1:].sum(), p[0, 1] + p[0, 0])
    assert torch.isclose(kept[2], p[0, 1] * (p[1, 2] + p[1, 0]))


def test_path_to_lists_the_nodes_in_order() -> None:
    draft = draft_of([Row([-1, 0, 0, 2, 1, 3], [0] * 6, [0] * 6, [False] * 6)])
    path, length = acceptance.path_to(torch.tensor([5]), draft)
    assert path.tolist() == [[0, 2, 3, 5, -1, -1]]
    assert length.item() == 4
