"""Draft a tree, verify all its nodes in one forward: Medusa's fixed trees and EAGLE-2's grown ones.

Siblings are ranked by draft logit plus the noise that the trunk will draw with, so the best few hold the draw more
often than the likeliest few would.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from speech_mtp.decoding._drafting import Growth, HeadRule, plain
from speech_mtp.decoding.laws import Law
from speech_mtp.decoding.payoff import Payoff
from speech_mtp.heads.base import MTPHead
from speech_mtp.types import Draft

Ranks = tuple[int, ...]


class Tree(HeadRule):
    """A tree of guesses by ``head``; lossless with exact acceptance.

    ``shape`` "dynamic" (EAGLE-2, Li et al. 2024, arXiv:2406.16858): per level the ``top_k`` likeliest nodes get
    ``top_k`` children each, down to ``depth`` (default: 4, or what the head drafts if that is less); the ``nodes``
    likeliest of all are drafted, except those below ``confidence`` in the head's own opinion.

    ``shape`` "static" (Medusa, section 2.3.3): the same nodes every time, given as ``paths``, each the ranks that lead
    to it, or built by :func:`static_tree` with ``nodes`` of them from ``accuracies`` (default: those that were measured
    when the head was trained). ``nodes`` do not count node 0.
    """

    def __init__(
        self,
        head: MTPHead,
        shape: str = "dynamic",
        nodes: int = 12,
        depth: int | None = None,
        top_k: int = 4,
        confidence: float = 0.0,
        paths: Sequence[Sequence[int]] | None = None,
        accuracies: Sequence[Sequence[float]] | None = None,
        acceptance: str | Mapping[str, Any] = "exact",
        payoff: Payoff | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(head, acceptance, payoff)
        if shape == "static" and paths is None and accuracies is None:
            accuracies = head.accuracies
        self._check(shape, nodes, depth, top_k, confidence, paths, accuracies)
        self.nodes, self.top_k = nodes, top_k
        self.floor = math.log(confidence) if confidence else float("-inf")
        self.levels: tuple[Level, ...] = ()
        self._placed: dict[torch.device, list[Indices]] = {}
        if shape == "static":
            self.levels = levels_of(static_tree(accuracies, nodes) if accuracies else paths or ())
            if max(level.width for level in self.levels) > head.num_tokens:
                raise ValueError(f"The tree has ranks that a head of {head.num_tokens} tokens does not have.")
            self.depth = self.check_depth(len(self.levels))
        else:
            self.depth = self.check_depth(depth or (4 if head.recursive else min(4, self.reach(head))))

    @staticmethod
    def _check(
        shape: str, nodes: int, depth: int | None, top_k: int, confidence: float, paths: object, accuracies: object
    ) -> None:
        """ValueError for settings that are wrong or would be ignored."""
        if shape not in ("static", "dynamic"):
            raise ValueError(f"shape is {shape!r}; it must be 'static' or 'dynamic'.")
        if (paths is not None) + (accuracies is not None) != (shape == "static"):
            raise ValueError(
                "paths or accuracies make a static tree, one of them and not both (a head that was measured after its "
                "training has its own); a dynamic one has none."
            )
        if shape == "static" and (confidence or depth):
            raise ValueError("confidence and depth are settings of dynamic trees; a static one is what its paths are.")
        if min(nodes, top_k, depth or 1) < 1:
            raise ValueError(f"nodes {nodes}, top_k {top_k} and depth {depth} must be positive.")

    def propose(self, rows: Any, law: Law) -> Draft:
        if self.rests():
            return plain(rows)
        growth = Growth(self.head, rows, law)
        return self._static(growth) if self.levels else self._dynamic(growth)

    def _static(self, growth: Growth) -> Draft:
        tokens, parents = [growth.draft.tokens], [growth.draft.parents]
        states = growth.states()
        for level, at in zip(self.levels, self._on(states.device), strict=True):
            found = growth.guesses(states, level.width)
            ranks = at.ranks.clamp(max=found.chance.shape[-1] - 1)
            new = found.tokens[:, at.slots, ranks]
            possible = (found.chance[:, at.slots, ranks] > float("-inf")) & (ranks == at.ranks)
            tokens.append(new)
            parents.append(torch.where(possible, at.parents, -1))
            if level.expanded:
                growth.add(new[:, at.expanded], at.above.expand(len(new), -1))
                states = growth.states()
        return Draft(torch.cat(tokens, 1), torch.cat(parents, 1), depth=len(self.levels))

    def _on(self, device: torch.device) -> list[Indices]:
        """The indices of the levels on ``device``, where they are copied once."""
        if device not in self._placed:
            self._placed[device] = [level.indices(device) for level in self.levels]
        return self._placed[device]

    def _dynamic(self, growth: Growth) -> Draft:
        states, rows = growth.states(), growth.rows
        # Of the nodes on the newest level: log-probability, place in the pool and number of expansion (-1: node 0).
        sure = torch.zeros(len(states), 1, device=states.device)
        place = number = torch.full((len(states), 1), -1, device=states.device)
        pool: list[tuple[Tensor, Tensor, Tensor]] = []
        size = 0
        for d in range(self.depth):
            found = growth.guesses(states, self.top_k)
            width = found.chance.shape[-1]
            tokens = found.tokens.flatten(1, 2)
            total = (sure[..., None] + found.chance).flatten(1)
            pool.append((tokens, total, place.repeat_interleave(width, 1)))
            chosen = torch.sort(total, dim=1, descending=True, stable=True).indices[:, :width]
            sure = total.gather(1, chosen)
            if d + 1 == self.depth or self._hopeless(sure):
                break
            place, size = size + chosen, size + tokens.shape[1]
            growth.add(_taken(tokens, chosen), number.gather(1, chosen // width))
            states = growth.states()
            newest = torch.arange(growth.count - width, growth.count, device=chosen.device)
            number = newest.expand(len(chosen), -1)
        tokens, total, parents = (torch.cat(part, 1) for part in zip(*pool, strict=True))
        return self._likeliest(rows, tokens, total, parents)

    def _hopeless(self, sure: Tensor) -> bool:
        """Whether no node of the newest level, and so none below, is to be drafted. Asked on a CPU only: elsewhere the
        answer would cost a copy at every level."""
        return self.floor > float("-inf") and sure.device.type == "cpu" and bool((sure <= self.floor).all())

    def _likeliest(self, rows: Any, tokens: Tensor, sure: Tensor, parents: Tensor) -> Draft:
        """The likeliest ``nodes`` of a pool. A parent is at least as likely as its children and comes earlier, so a
        stable order takes it before them."""
        real = sure > self.floor
        count = min(self.nodes, real.shape[1])
        if real.device.type == "cpu":  # elsewhere it would cost a copy, and drafts of one size are worth more
            count = min(count, int(real.sum(1).max()))
        if count == 0:
            return plain(rows)
        taken = torch.sort(sure, dim=1, descending=True, stable=True).indices[:, :count].sort(1).values
        above = parents.gather(1, taken)
        above = torch.where(above < 0, 0, torch.searchsorted(taken, above) + 1)
        above = torch.where(real.gather(1, taken), above, -1)
        node = plain(rows)
        tokens = torch.cat([node.tokens, _taken(tokens, taken)], 1)
        return Draft(tokens, torch.cat([node.parents, above], 1), depth=self.depth)


def _taken(tokens: Tensor, at: Tensor) -> Tensor:
    """Entries ``at [B, N]`` of ``tokens [B, M, C]``."""
    return tokens.gather(1, at[..., None].expand(-1, -1, tokens.shape[-1]))


@dataclass(frozen=True)
class Level:
    """One level of a static tree. Of each node: ``parents`` (counted over the draft), ``slots`` (the parent among those
    expanded on the level before) and ``ranks``; ``expanded`` lists the nodes that have children, and ``above`` their
    parents as :meth:`MTPHead.expand` counts them. ``width`` is the highest rank, plus one."""

    parents: list[int]
    slots: list[int]
    ranks: list[int]
    expanded: list[int]
    above: list[int]

    @property
    def width(self) -> int:
        return max(self.ranks) + 1

    def indices(self, device: torch.device) -> Indices:
        """The lists as tensors on ``device``."""
        lists = (self.parents, self.slots, self.ranks, self.expanded, self.above)
        return Indices(*(torch.tensor(x, dtype=torch.long, device=device) for x in lists))


class Indices(NamedTuple):
    """What a :class:`Level` lists, as tensors."""

    parents: Tensor
    slots: Tensor
    ranks: Tensor
    expanded: Tensor
    above: Tensor


def levels_of(paths: Sequence[Sequence[int]]) -> tuple[Level, ...]:
    """The levels of the tree with nodes ``paths``. Raises ValueError if there is none, or one without its parent."""
    nodes = sorted({tuple(path) for path in paths}, key=lambda path: (len(path), path))
    known = {path: i for i, path in enumerate([(), *nodes])}
    if not nodes or () in nodes:
        raise ValueError("The paths of a tree are one or more lists of ranks, none of them empty.")
    for path in nodes:
        if path[:-1] not in known or min(path) < 0:
            raise ValueError(f"The tree has the node {list(path)} but not {list(path[:-1])}, its parent.")
    inner = {path[:-1] for path in nodes}
    order: dict[Ranks, int] = {(): -1}  # as the head counts what is expanded
    levels: list[Level] = []
    before: list[Ranks] = [()]
    for depth in range(1, len(nodes[-1]) + 1):
        here = [path for path in nodes if len(path) == depth]
        after = [path for path in here if path in inner]
        order.update({path: len(order) - 1 + i for i, path in enumerate(after)})
        levels.append(
            Level(
                [known[path[:-1]] for path in here],
                [before.index(path[:-1]) for path in here],
                [path[-1] for path in here],
                [here.index(path) for path in after],
                [order[path[:-1]] for path in after],
            )
        )
        before = after
    return tuple(levels)


def static_tree(accuracies: Sequence[Sequence[float]], nodes: int) -> list[Ranks]:
    """The ``nodes`` paths most often right if ``accuracies[depth][rank]`` are independent (Medusa, section 2.3.3).

    Greedy: add the likeliest node whose parent is in the tree. Nodes that are never right are left out.
    """
    tree: list[Ranks] = []
    border: list[tuple[float, int, Ranks]] = []

    def open_(path: Ranks, value: float) -> None:
        for rank, accuracy in enumerate(accuracies[len(path)] if len(path) < len(accuracies) else ()):
            if not 0 <= accuracy <= 1:
                raise ValueError(f"The accuracy of rank {rank} at depth {len(path)} is {accuracy}, not in 0 to 1.")
            if value * accuracy > 0:
                heapq.heappush(border, (-value * accuracy, len(path) + 1, (*path, rank)))

    open_((), 1.0)
    while border and len(tree) < nodes:
        value, _, path = heapq.heappop(border)
        tree.append(path)
        open_(path, -value)
    return tree
