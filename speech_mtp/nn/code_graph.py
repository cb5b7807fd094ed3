"""The search for the best of very many long ids without scoring them all: graph-constrained decoding of RPG.

Hou et al. 2025 (RPG, KDD, facebookresearch/RPG_KDD2025): an item has an id of many unordered digits, which a model
predicts in parallel; an item's score is the sum of its digits' log probabilities. Items whose digits are alike are
joined by edges. A search starts at some items, and again and again goes to the neighbours of the best ones, so that its
cost depends on the beam and not on the number of items. What is found always exists, which parallel digits alone do
not promise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Score = Callable[[Tensor], Tensor]
"""``score(items [R, M]) -> [R, M]``: of rows that look for something, what each of their items is worth."""
BLOCK = 1024
"""Items that neighbours are looked for at a time."""
DIRECTIONS = 512
"""Random directions that longer vectors of items are compared in (Johnson and Lindenstrauss 1984)."""


@dataclass(frozen=True)
class Search:
    """``beams`` items are kept after each of ``steps``; ids of at most ``exhaustive`` items are all scored."""

    beams: int = 32
    steps: int = 4
    exhaustive: int = 4096


def neighbours(ids: Tensor, vectors: list[Tensor], count: int) -> Tensor:
    """``ids [N, C]`` digits, ``vectors`` of each digit ``[V_c, D]`` -> the ``count`` items that are most like each one,
    ``[N, count]``: the mean over digits of the cosine of their vectors. An item is no neighbour of its own.

    Raises ``ValueError`` where there are not as many others.
    """
    if not 0 < count < len(ids):
        raise ValueError(f"{len(ids)} items have {len(ids) - 1} neighbours each, not {count}; ask for 1 to as many.")
    unit = _joined(ids, vectors)
    found = []
    for first in range(0, len(ids), BLOCK):
        alike = unit[first : first + BLOCK] @ unit.T
        rows = torch.arange(len(alike), device=ids.device)
        alike[rows, rows + first] = float("-inf")
        found.append(alike.topk(count, 1).indices)
    return torch.cat(found)


def _joined(ids: Tensor, vectors: list[Tensor]) -> Tensor:
    """A vector of every item whose products are the sums of its digits' cosines, up to the error of projections."""
    parts = [F.normalize(v.float(), dim=-1) for v in vectors]
    size = sum(part.shape[1] for part in parts)
    if size > DIRECTIONS:
        rng = torch.Generator().manual_seed(0)
        turns = [torch.randn(part.shape[1], DIRECTIONS, generator=rng).to(part) / DIRECTIONS**0.5 for part in parts]
        return torch.stack(
            [(part @ turn)[ids[:, c].long()] for c, (part, turn) in enumerate(zip(parts, turns, strict=True))]
        ).sum(0)
    return torch.cat([part[ids[:, c].long()] for c, part in enumerate(parts)], 1)


def best_items(edges: Tensor, score: Score, rows: int, search: Search) -> tuple[Tensor, Tensor]:
    """The best items found for each of ``rows``, the best first: ``[R, M]`` and their scores (-inf: the same item once
    more). ``edges [N, K]`` are the neighbours of every item.

    1. Score some items from all over, the same for every row, so that a row alone finds what it finds among others.
    2. Keep the best ``beams``. 3. Add their neighbours, and go on with 2, ``steps`` times.
    """
    count = len(edges)
    beams = min(search.beams, count)
    everyone = torch.arange(count, device=edges.device)
    if count <= search.exhaustive:
        items = everyone.expand(rows, -1)
        return _best(items, score(items), beams)
    spread = min(count, beams * (1 + edges.shape[1]))
    items = everyone[torch.linspace(0, count - 1, spread, device=edges.device).round().long()].expand(rows, -1)
    items, scores = _best(items, score(items), beams)
    for _ in range(search.steps):
        items = torch.cat([items, edges[items].flatten(1)], 1)
        items, scores = _best(items, _once(items, score(items)), beams)
    return items, scores


def _best(items: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    scores, at = scores.topk(count, 1)
    return items.gather(1, at), scores


def _once(items: Tensor, scores: Tensor) -> Tensor:
    """``scores`` with -inf for all but one of equal items of a row."""
    ordered, at = items.sort(dim=1, stable=True)
    again = torch.zeros_like(ordered, dtype=torch.bool)
    again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    return scores.masked_fill(torch.zeros_like(again).scatter(1, at, again), float("-inf"))


# -- ids of vectors -------------------------------------------------------------------------------------------------
def product_ids(vectors: Tensor, digits: int, size: int, seed: int = 0, rounds: int = 20) -> Tensor:
    """``vectors [N, D]`` -> ids ``[N, digits]`` of a product quantiser (Jégou et al. 2011): a random rotation, so that
    all digits carry alike, then in each of ``digits`` slices the nearest of ``size`` means (k-means, ``rounds``).

    Raises ``ValueError`` for more digits than numbers.
    """
    if digits > vectors.shape[1]:
        raise ValueError(f"Vectors of {vectors.shape[1]} numbers have no {digits} digits; ask for as many at most.")
    rng = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(vectors.shape[1], vectors.shape[1], generator=rng)).Q.to(vectors)
    parts = (vectors @ turn).tensor_split(digits, 1)
    return torch.stack([_nearest_means(part, size, rounds, rng) for part in parts], 1)


def _nearest_means(x: Tensor, size: int, rounds: int, rng: torch.Generator) -> Tensor:
    """The mean that each of ``x [N, D]`` is nearest to, ``[N]``; a mean that nothing is near stays where it is."""
    means = x[torch.randperm(len(x), generator=rng)[:size].to(x.device)]
    for _ in range(rounds):
        near = torch.cdist(x, means).argmin(1)
        chosen = F.one_hot(near, len(means)).to(x)
        counts = chosen.sum(0)[:, None]
        means = torch.where(counts > 0, chosen.T @ x / counts.clamp(min=1), means)
    return torch.cdist(x, means).argmin(1)
