"""Rows of a running decode: what language models of text and of speech decode alike.

A row stands somewhere (:class:`Place`), may be given settings of its own, joins and leaves
(:mod:`speech_mtp.nn.row_values`). Positions are committed here, for text and for speech by the same lines.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from speech_mtp.nn.kv_cache import KVCache
from speech_mtp.types import Draft, Emitted, LMOutput, RowSampling, Verdict


@dataclass
class Place:
    """What follows from the tokens so far, at a position; fields ``[B, ...]`` for rows, ``[B, M, ...]`` for nodes.

    ``position`` counts the row's positions up to here, and so is the place of the noise of what comes next.
    """

    position: Tensor

    def map(self, *others: Self, by: Any) -> Self:
        """Apply ``by`` to every field, together with that of ``others``."""
        names = [f.name for f in fields(self)]
        return replace(self, **{name: by(*(getattr(place, name) for place in (self, *others))) for name in names})

    def at(self, nodes: Tensor) -> Self:
        """``nodes [B, N]`` of a place of nodes ``[B, M, ...]``: ``[B, N, ...]``."""

        def taken(x: Tensor) -> Tensor:
            index = nodes.view(*nodes.shape, *[1] * (x.ndim - 2)).expand(*nodes.shape, *x.shape[2:])
            return x.gather(1, index)

        return self.map(by=taken)

    def only(self, node: int | slice) -> Self:
        """The node ``[B, ...]``, or the nodes ``[B, N, ...]``."""
        return self.map(by=lambda x: x[:, node])

    def clone(self) -> Self:
        return self.map(by=torch.clone)


def side_by_side(places: list[Any]) -> Any:
    """Places of rows ``[B, ...]``, one after another, as a place of nodes ``[B, N, ...]``."""
    return places[0].map(*places[1:], by=lambda *parts: torch.stack(parts, 1))


@dataclass
class Rows:
    """``last [R, C]`` is the committed position not yet in ``cache``, ``place`` where each row stands after it,
    ``sampling`` the settings of each, ``head`` what the rule's head keeps. ``version`` counts commits."""

    cache: KVCache
    last: Tensor
    place: Any
    sampling: RowSampling
    head: Any
    version: int

    @property
    def count(self) -> int:
        return len(self.last)

    def clone(self) -> Self:
        """An independent copy: both may go on."""
        copies = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.clone() for k, v in copies.items() if hasattr(v, "clone")})


class Trunk(ABC):
    """A language model whose rows are decoded: one of text tokens, or of groups of speech tokens."""

    @abstractmethod
    def at_nodes(self, rows: Any, draft: Draft) -> Any:
        """The place ``[B, M, ...]`` after every node's own token."""

    @abstractmethod
    def advanced(self, rows: Any, place: Any, tokens: Tensor) -> Any:
        """The place after one position more: ``tokens [B, C]`` behind ``place [B, ...]``."""

    @abstractmethod
    def vectors(self, rows: Any, tokens: Tensor, place: Any) -> Tensor:
        """Input vectors ``[B, T, D]`` of positions ``tokens [B, T, C]``: what the trunk and heads are fed."""

    def node_vectors(self, rows: Any, draft: Draft, newest: int) -> Tensor:
        """Input vectors ``[B, N, D]`` of the newest N nodes of ``draft``."""
        place = self.placed(rows, draft).place.only(slice(-newest, None))
        return self.vectors(rows, draft.tokens[:, -newest:], place)

    @abstractmethod
    def verify(self, rows: Any, draft: Draft, taps: tuple[int, ...] = (-1,)) -> LMOutput:
        """One forward over the M nodes of ``draft``: states ``[B, M, taps, D]``. Nothing is committed."""

    @abstractmethod
    def binding(self) -> dict[str, Any]:
        """What a head borrows, as keyword arguments of ``Binding``."""

    @abstractmethod
    def shape(self) -> dict[str, Any]:
        """The sizes that a head must know, as keyword arguments of ``TrunkShape``."""

    def placed(self, rows: Any, draft: Draft) -> Draft:
        """``draft`` with the place of every node."""
        if draft.place is None:
            draft.place = self.at_nodes(rows, draft)
        return draft

    @torch.inference_mode()
    def commit(self, rows: Any, draft: Draft, verdict: Verdict, active: Tensor) -> Emitted:
        """Keep the accepted nodes and take ``verdict.next`` as the newest position of the rows ``active [B]``; what is
        new in each."""
        place, tokens = self.placed(rows, draft).place, verdict.next[:, None]
        if draft.parents.shape[1] == 1:  # plain decoding: the sure position alone is new
            final = self.advanced(rows, place.only(0), verdict.next)
            places = final.map(by=lambda one: one[:, None])
        else:
            final = self.advanced(rows, place.at(verdict.stop[:, None]).only(0), verdict.next)
            after = following(verdict)
            tokens = torch.cat([draft.tokens, tokens], 1)
            tokens = tokens.gather(1, after[..., None].expand(-1, -1, tokens.shape[-1]))
            places = place.map(final, by=lambda nodes, one: torch.cat([nodes, one[:, None]], 1)).at(after)
        new = Emitted(tokens, places, verdict.length * active)
        rows.cache.commit(verdict.path, new.lengths)
        rows.last = torch.where(active[:, None], verdict.next, rows.last)
        rows.place = rows.place.map(final, by=lambda old, moved: torch.where(_like(active, old), moved, old))
        rows.version += 1
        return new


def following(verdict: Verdict) -> Tensor:
    """What follows each kept node ``[B, M]``, that is, what is new: a node, or M for the sure position, which also
    fills up the row. ::

        path      0   2   5  -1      (kept nodes; node 0 was known before)
        new       2   5   M   M
    """
    path = verdict.path
    after = torch.cat([path[:, 1:], torch.full_like(path[:, :1], -1)], 1)
    return torch.where(after < 0, path.shape[1], after)


def _like(active: Tensor, x: Tensor) -> Tensor:
    return active.view(-1, *[1] * (x.ndim - 1))
