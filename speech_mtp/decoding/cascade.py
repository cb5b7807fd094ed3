"""Lookup where the text repeats itself, a head's draft elsewhere: each row is drafted by what is surer there.

A lookup costs no forward of the head (:mod:`speech_mtp.decoding.lookup`), and the longer the n-gram that reappears, the
more often it is right; a head also knows what to say for the first time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from speech_mtp.decoding._drafting import HeadRule, plain
from speech_mtp.decoding.acceptance import longest
from speech_mtp.decoding.laws import Law
from speech_mtp.decoding.lookup import continuation, longest_match
from speech_mtp.decoding.payoff import Payoff
from speech_mtp.decoding.tree import Tree
from speech_mtp.heads.base import HeadState, MTPHead
from speech_mtp.types import Draft, Emitted, LMOutput, Verdict


@dataclass
class CascadeState:
    """What a cascade keeps of its rows.

    ``head``: what the head itself keeps. ``trust [B]``, from 0 to 1: what lookups have been worth in this turn.
    ``going [B]``: the rows that took part in the newest step (all, when a turn begins). ``looked [B]``: the rows whose
    newest draft is a lookup. ``reach [B]``: how many tokens the next lookup has. ``judged``: a draft has been judged
    whose outcome is not read yet.
    """

    head: HeadState
    trust: Tensor
    going: Tensor
    looked: Tensor
    reach: Tensor
    judged: bool = False

    def clone(self) -> CascadeState:
        """An independent copy; the tensors are replaced, never changed in place."""
        return replace(self, head=self.head.clone())


class Cascade(HeadRule):
    """A lookup or a tree by ``head``, row by row and step by step; lossless with exact acceptance.

    Where the newest ``sure_ngram`` tokens have appeared before, a row drafts the ``lookup_depth`` tokens that followed.
    Other rows draft the dynamic tree of :class:`~speech_mtp.decoding.tree.Tree`, whose settings ``nodes``, ``depth``,
    ``top_k`` (1: a chain) and ``confidence`` are (the defaults were the fastest on a CPU: ``recipes/text_mtp``). When
    no row needs it the head does not draft, but it always reads.
    With ``graft``, such a tree is given one branch more, what followed a shorter match of ``min_ngram`` tokens or more
    (default 2), as far as the tree has fewer than ``nodes``, and ``graft_nodes`` (default 4) more; what it holds of
    that branch already is not repeated.

    Lookups that fail are trusted less. What one was worth is how many of its tokens were kept, as a share of the tree's
    depth (more the head could not have given) or of its own if that is less, at most 1. Of these each row keeps an
    average, in which the past weighs ``memory``. A lookup needs ``sure_ngram`` tokens in a row where that is 1, up to
    ``max_ngram`` where it is 0, evenly between; so what repeats for long is always looked up. After a lookup that was
    kept whole the row's next has twice as many tokens, at most ``longest_lookup`` (default: twice ``lookup_depth``),
    after another ``lookup_depth`` again; on a GPU, where drafts of one size are worth more, always that many. Every
    turn begins with full trust.

    While ``payoff`` lets the head rest, rows look up all the same; it counts only the steps that the head would draft
    in (in a batch, with all their rows).
    """

    def __init__(
        self,
        head: MTPHead,
        nodes: int = 8,
        depth: int | None = None,
        top_k: int = 4,
        confidence: float = 0.05,
        lookup_depth: int = 8,
        longest_lookup: int | None = None,
        sure_ngram: int = 3,
        max_ngram: int = 8,
        memory: float = 0.8,
        graft: bool = True,
        graft_nodes: int | None = None,
        min_ngram: int | None = None,
        acceptance: str | Mapping[str, Any] = "exact",
        payoff: Payoff | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(head, acceptance, payoff)
        self.text_only = True
        if (min_ngram is not None or graft_nodes) and not graft:
            raise ValueError(
                "min_ngram and graft_nodes are settings of grafted branches; leave them out, or set graft."
            )
        graft_nodes = 4 if graft_nodes is None else graft_nodes
        if graft_nodes < 0:
            raise ValueError(f"graft_nodes is {graft_nodes}; it is a number of nodes, 0 or more.")
        least = min(2, sure_ngram) if min_ngram is None else min_ngram
        most = 2 * lookup_depth if longest_lookup is None else longest_lookup
        if not 1 <= lookup_depth <= most or not 1 <= least <= sure_ngram <= max_ngram:
            raise ValueError(
                f"lookup_depth {lookup_depth} and longest_lookup {most} must rise from one, and so must "
                f"min_ngram {least}, sure_ngram {sure_ngram} and max_ngram {max_ngram}."
            )
        if not 0 <= memory <= 1:
            raise ValueError(f"memory is {memory}; it is a weight between 0 and 1.")
        self.tree = Tree(head, nodes=nodes, depth=depth, top_k=top_k, confidence=confidence)
        self.lookup_depth, self.longest_lookup = lookup_depth, most
        self.sure_ngram, self.max_ngram = sure_ngram, max_ngram
        self.memory, self.graft, self.min_ngram = memory, graft, least if graft else sure_ngram
        self.room = nodes + graft_nodes

    def begin(self, rows: Any, law: Law) -> None:
        super().begin(rows, law)
        trust = torch.ones(len(rows.last), device=rows.last.device)
        reach = torch.full_like(rows.place.position, self.lookup_depth)
        rows.head = CascadeState(rows.head, trust, trust > 0, trust < 0, reach)

    def read(self, rows: Any, law: Law, out: LMOutput, new: Emitted) -> None:
        kept: CascadeState = rows.head
        super().read(replace(rows, head=kept.head), law, out, new)
        if kept.judged:
            kept.judged, kept.going = False, new.lengths > 0
        else:  # a turn begins
            kept.trust, kept.going = torch.ones_like(kept.trust), torch.ones_like(kept.going)
            kept.reach = torch.full_like(kept.reach, self.lookup_depth)

    def propose(self, rows: Any, law: Law) -> Draft:
        """The next draft, in four steps.

        1. Find the longest match of each row's newest tokens. Where it is long enough, the row is looked up.
        2. Let the head draft a tree, unless every row is looked up or the head rests.
        3. Give each row room for looked-up tokens: ``reach`` in place of a tree, or what a grafted branch may have.
        4. Join the tree and the tokens that followed the matches.
        """
        kept: CascadeState = rows.head
        start, ngram = longest_match(rows.tokens, rows.place.position, self.max_ngram, self.min_ngram)
        kept.looked = (ngram >= self.needed(kept.trust)) & kept.going
        # One copy to the host for both.
        all_looked, any_looked = torch.stack([(kept.looked == kept.going).all(), kept.looked.any()]).tolist()

        resting = not all_looked and self.rests()
        self.paused = resting and not any_looked
        drafting = not all_looked and not resting
        tree = self.tree.propose(replace(rows, head=kept.head), law) if drafting else plain(rows)

        grafting = drafting and self.graft
        if not any_looked and not grafting:
            return tree
        spare = self._spare(tree) if grafting else torch.zeros_like(ngram)
        room = torch.where(kept.looked, kept.reach, spare.masked_fill((ngram == 0) | ~kept.going, 0))

        depth = int(room.max()) if room.device.type == "cpu" else self.lookup_depth  # to look costs more on a GPU
        if depth == 0:
            return tree
        ahead = continuation(rows.tokens, rows.place.position, start, depth)
        return joined(tree, ahead, kept.looked, room)

    def _spare(self, tree: Draft) -> Tensor:
        """How many nodes a grafted branch may add to each row of ``tree`` ``[B]``."""
        return self.room - (tree.parents >= 0).sum(1)

    def needed(self, trust: Tensor) -> Tensor:
        """How many tokens must reappear for a lookup instead of a tree ``[B]``, by ``trust [B]``."""
        return self.sure_ngram + ((1 - trust) * (self.max_ngram - self.sure_ngram)).round()

    def accept(self, rows: Any, draft: Draft, out: LMOutput, law: Law) -> Verdict:
        verdict, kept = super().accept(rows, draft, out, law), rows.head
        worth = (verdict.kept / min(self.tree.depth, self.lookup_depth)).clamp(max=1)
        kept.trust = torch.where(kept.looked, torch.lerp(worth, kept.trust, self.memory), kept.trust)
        if kept.reach.device.type == "cpu":
            kept.reach = torch.where(kept.looked, self._next_reach(kept.reach, verdict.kept), kept.reach)
        kept.judged = True
        return verdict

    def _next_reach(self, reach: Tensor, kept: Tensor) -> Tensor:
        """The length ``[B]`` of the next lookup, after one of ``reach [B]`` tokens of which ``kept [B]`` were right."""
        doubled = (2 * reach).clamp(max=self.longest_lookup)
        return doubled.masked_fill(kept < reach, self.lookup_depth)


def joined(tree: Draft, ahead: Tensor, alone: Tensor, room: Tensor) -> Draft:
    """``tree`` with the looked-up tokens ``ahead [B, L]`` as one branch more.

    ``room [B]`` is how many nodes may be new, at least one in the rows ``alone [B]``, which have the branch instead of
    the tree. With ``ahead`` a b c d and room for two::

        0 --+-- a ----- x                   0 --+-- a --+-- x
            |                                   |       |
            +-- y                               |       +-- b ----- c
                                                +-- y
        place     0  1  2  3                place     0  1  2  3  4  5
        token     0  a  x  y         ->     token     0  a  x  y  b  c
        parent   -1  0  1  0                parent   -1  0  1  0  1  4

    1. Take the tree out of the rows alone: node 0 stays.
    2. Follow ``ahead`` from node 0 on through nodes that hold its tokens already.
    3. Hang the rest, as much as there is room for, below the last of these: the new nodes have the places after the
       tree, or after node 0 in a row alone.
    """
    tokens, parents = tree.tokens[..., 0], tree.parents.masked_fill(alone[:, None], -1)
    m, depth = tokens.shape[1], ahead.shape[1]

    shared, above = common(Draft(tokens[..., None], parents), ahead)

    count = torch.minimum(room, depth - shared)
    first = torch.where(alone, 1, m)
    steps = torch.arange(depth, device=ahead.device)
    places, new = first[:, None] + steps, steps < count[:, None]
    rest = ahead.gather(1, (shared[:, None] + steps).clamp(max=depth - 1))
    tokens = _put(tokens, places, rest, new, 0)
    parents = _put(parents, places, torch.where(steps == 0, above[:, None], places - 1), new, -1)
    # On a GPU to look costs more than places that only fill the rows.
    width = int((first + count).max()) if room.device.type == "cpu" else m + depth
    return Draft(tokens[:, :width, None], parents[:, :width])


def _put(values: Tensor, places: Tensor, entries: Tensor, new: Tensor, filler: int) -> Tensor:
    """``values [B, M]`` and L times ``filler``, with ``entries [B, L]`` at ``places [B, L]`` where ``new [B, L]``."""
    longer = F.pad(values, (0, entries.shape[1]), value=filler)
    return longer.scatter(1, places, torch.where(new, entries, longer.gather(1, places)))


def common(tree: Draft, ahead: Tensor) -> tuple[Tensor, Tensor]:
    """How much of ``ahead [B, L]`` stands in ``tree`` from node 0 on ``[B]``, and the node ``[B]`` where that ends."""
    if tree.tokens.shape[1] == 1:
        none = torch.zeros(len(ahead), dtype=torch.long, device=ahead.device)
        return none, none
    depth = ahead.shape[1]
    wanted = ahead.gather(1, (tree.depths - 1).clamp(0, depth - 1))
    stop = longest((tree.tokens[..., 0] == wanted) & (tree.depths <= depth), tree)
    return tree.depths.gather(1, stop[:, None])[:, 0], stop
