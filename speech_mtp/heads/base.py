"""What a head is: it looks further ahead than the trunk's next token, so that a rule can draft with it.

Life of a head in decoding::

    state = head.open(rows)                     nothing read yet
    head.read(state, hidden, x, lengths)        the prompt, and after every verification what was kept
    head.root(state)                            the state of the position after ``last``: what follows node 0
    head.expand(state, x, parents)              drafted nodes, one depth at a time -> the states of what follows them
    head.read(...)                              drafted entries leave, verified ones enter

Where ``h_t`` is the trunk's state at the newest position in its cache, ``last`` is ``x_{t+1}``, the input vector of the
position after it, which is known, and the first drafted position is t + 2: offset 2 from ``h_t``.

A head reads vectors and predicts *states*. What embeds tokens into vectors, and what makes tokens of a state, lies
outside: text with the trunk's embedding and :meth:`MTPHead.scores`, speech with an LM that embeds groups of tokens with
their context and has an output layer of its own.

Training asks for the same states at all positions at once: :meth:`MTPHead.unroll_states`, for text with the scores:
:meth:`MTPHead.unroll`. A head knows nothing of rules, of sampling, or of how its trunk is built.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import pairwise
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp.nn.packed import FastLinear, fast_linear, pack_linears
from speech_mtp.nn.transformer import Attention, BlockShape, SwiGLU, causal
from speech_mtp.nn.visibility import Mask, dense, mask_of, within_segments
from speech_mtp.types import LMOutput


@dataclass(frozen=True)
class TrunkShape:
    """What a head must know of its trunk before it is built. ``rms_norm_eps`` and ``rope_theta`` are the trunk's."""

    dim: int
    vocab_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0

    def block(self, dim_in: int | None = None) -> BlockShape:
        """The sizes of one of the trunk's own blocks, for a head that has such blocks."""
        return BlockShape(
            self.dim,
            self.num_heads,
            self.num_kv_heads,
            self.head_dim,
            self.intermediate_size,
            self.rms_norm_eps,
            self.rope_theta,
            dim_in,
        )


@dataclass(frozen=True)
class Binding:
    """What a head borrows from its trunk: ``embed`` tokens ``[...]`` -> ``[..., D]``, ``unembed`` states (after the
    final norm) ``[..., D]`` -> ``[..., V]``, ``weight [V, D]`` of that map, and ``norm``, the final norm itself.

    A trunk without text lends its norm alone."""

    embed: Callable[[Tensor], Tensor] | None
    unembed: Callable[[Tensor], Tensor] | None
    weight: Tensor | None
    norm: nn.Module


NO_TEXT = "The head is bound to a trunk without text: it predicts states, but has no {}."


@dataclass
class HeadState:
    """What a head keeps of every row. ``window [B, W, taps, D]`` are the newest trunk states, newest last (zeros before
    the text), ``last [B, D]`` the input vector of the newest known position, ``depth`` how many levels have been
    expanded since the last read."""

    window: Tensor
    last: Tensor
    depth: int = 0

    def clone(self) -> HeadState:
        """An independent copy; fields that are tensors or have a ``clone`` are copied."""
        copies = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v.clone() for k, v in copies.items() if hasattr(v, "clone")})


class Mixture(nn.Module):
    """One state out of several taps, ``[..., taps, D]`` -> ``[..., D]``.

    ``last`` takes the newest tap and has no parameters; ``mixture`` is a learned softmax over the taps (the weighted
    hidden states of arXiv:2502.09419, initialised to favour the last); ``concat`` maps all taps together.
    """

    def __init__(self, kind: str, num_taps: int, dim: int) -> None:
        super().__init__()
        if kind not in ("last", "mixture", "concat"):
            raise ValueError(f"feed is {kind!r}; it must be 'last', 'mixture' or 'concat'.")
        if kind == "last" and num_taps != 1:
            raise ValueError(f"feed 'last' reads one layer, but {num_taps} are listed; use 'mixture' or 'concat'.")
        self.kind = kind
        if kind == "mixture":
            start = torch.zeros(num_taps)
            start[-1] = 3.0
            self.weight = nn.Parameter(start)
        if kind == "concat":
            self.map = nn.Linear(num_taps * dim, dim, bias=False)
            with torch.no_grad():
                self.map.weight.zero_()
                self.map.weight[:, -dim:] = torch.eye(dim)

    def forward(self, hidden: Tensor) -> Tensor:
        if self.kind == "mixture":
            return (hidden * self.weight.softmax(0)[:, None].to(hidden.dtype)).sum(-2)
        if self.kind == "concat":
            out: Tensor = self.map(hidden.flatten(-2))
            return out
        return hidden[..., -1, :]


class PrivateUnembedding(nn.ModuleList):
    """``count`` output layers of a head's own, D -> num_tokens, started from the trunk's."""

    started: Tensor

    def __init__(self, count: int, dim: int, num_tokens: int) -> None:
        super().__init__(nn.Linear(dim, num_tokens, bias=False) for _ in range(count))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))

    def start(self, rows: Tensor) -> None:
        """Copy the trunk's ``rows [num_tokens, D]``, once: a loaded checkpoint says that it has started."""
        if not self.started:
            with torch.no_grad():
                for layer in self:
                    layer.get_parameter("weight").copy_(rows)
            self.started.fill_(True)


def source(offsets: tuple[int, ...], ahead: int) -> tuple[int, int]:
    """Which head, and on the state of how many positions ago, predicts the token ``ahead`` positions after ``h_t``.

    The first head that looks that far, from as many positions back as it looks too far. For offsets kj + 1 this is
    L-MTP's rule (arXiv:2505.17505): age ``(1 - ahead) mod k`` and head ``(ahead + age - 1) / k``, counted from 1.
    """
    j = next(j for j, offset in enumerate(offsets) if offset >= ahead)
    return j, offsets[j] - ahead


class MTPHead(nn.Module, ABC):
    """Base of all heads.

    ``offsets`` are the positions ahead of ``h_t`` that are predicted, (2, 3, 4) for three adjacent tokens, (3, 5, 7)
    for leaps of two: the only home of that number. ``taps`` name the trunk's layers that are read, ``feed`` how several
    become one. ``token_map`` (a buffer, or None) lists the target's id of every draft token when the draft vocabulary
    is reduced. :meth:`bind` lends the trunk's embedding and output layer; neither is part of the state dict.
    ``accuracies``, if measured, say per offset how often the token is the first, second, ... guess.
    """

    offsets: tuple[int, ...]
    token_map: Tensor | None

    def __init__(
        self,
        shape: TrunkShape,
        offsets: tuple[int, ...],
        taps: tuple[int, ...] = (-1,),
        feed: str = "last",
        draft_vocab: int | None = None,
    ) -> None:
        super().__init__()
        if not offsets or offsets[0] < 2 or any(b <= a for a, b in pairwise(offsets)):
            raise ValueError(f"A head predicts increasing positions from 2 on, not {offsets}.")
        wrong = [tap for tap in taps if not -1 <= tap < shape.num_layers]
        if wrong:
            raise ValueError(
                f"The head reads layer {wrong[0]} (taps), but the trunk has layers 0 to {shape.num_layers - 1}, and -1 "
                "for its top."
            )
        if draft_vocab is not None and not 0 < draft_vocab <= shape.vocab_size:
            raise ValueError(f"draft_vocab is {draft_vocab}; it must be between 1 and {shape.vocab_size}.")
        self.shape, self.offsets, self.taps = shape, tuple(offsets), tuple(taps)
        self.mix = Mixture(feed, len(self.taps), shape.dim)
        self.num_tokens = draft_vocab or shape.vocab_size
        ids = None if draft_vocab is None else torch.arange(draft_vocab)
        self.register_buffer("token_map", ids)
        self.private: PrivateUnembedding | None = None  # a head with output layers of its own puts them here
        self._binding: tuple[Binding, ...] = ()
        self._rows: FastLinear | None = None
        self._held: Tensor | None = None
        self.accuracies: list[list[float]] | None = None

    @property
    def num_depths(self) -> int:
        """How many levels of a draft the head was built for. Recursive heads can go on."""
        return len(self.offsets)

    @property
    def window(self) -> int:
        """How many past trunk states a draft needs: without leaps, one."""
        return self.offsets[0] - 1

    @property
    def adjacent(self) -> bool:
        """Whether the offsets are 2, 3, 4, ...: leaps need the rule that looks back."""
        return self.offsets == tuple(range(2, 2 + len(self.offsets)))

    needs_tokens = False
    """Whether scores depend on which token came before (DSpark's bigrams): such a head drafts one channel only."""

    recursive = False
    """Whether :meth:`expand` may be called more than ``num_depths - 1`` times."""

    identity_at_start = False
    """Whether an untrained head that reads the top layer scores its first offset as the trunk scores the next token."""

    shared_pass = False
    """Whether the offsets of :meth:`unroll_states` share one pass: back-propagating one by one needs the graph
    retained."""

    drafts_as_trained = True
    """Whether :meth:`unroll_states` gives the states that :meth:`root` and :meth:`expand` give when fed with the true
    vectors. A head that is published with another training says so here, and why."""

    # -- the trunk --------------------------------------------------------------------------------------------
    def bind(self, binding: Binding) -> None:
        """Borrow the trunk's embedding and output layer; held in a tuple, so they are not parameters of the head.

        Raises ValueError if the head needs text and the trunk has none."""
        self._binding, self._rows, self._held = (binding,), None, None
        if binding.weight is None and self.token_map is not None:
            raise ValueError(NO_TEXT.format("draft vocabulary"))
        if self.private is not None:
            self.private.start(self.unembedding())

    @property
    def trunk(self) -> Binding:
        if not self._binding:
            raise ValueError("The head is not bound to a trunk yet; call bind() first.")
        return self._binding[0]

    def set_vocabulary(self, ids: Tensor) -> None:
        """Choose the draft vocabulary: distinct target ids ``[draft_vocab]``, most frequent first."""
        if self.token_map is None or ids.shape != self.token_map.shape:
            raise ValueError(f"The head drafts {self.num_tokens} tokens, so its vocabulary needs as many ids.")
        self.token_map.copy_(ids)
        self._rows = self._held = None

    def prepare(self, blocks: str | None = None) -> Self:
        """Make ready to decode fast: weights are packed, or kept in ``blocks`` of that kind
        (:mod:`speech_mtp.nn.blocks`). Training the head further needs to load it anew."""
        for module in self.modules():
            if isinstance(module, Attention | SwiGLU) and type(module) in (Attention, SwiGLU):  # as they are
                module.pack(blocks)
        pack_linears(self, blocks)
        if self.token_map is not None and self.private is None:
            self._rows = fast_linear(self.unembedding(), None, blocks)
        return self

    def unembed(self, hidden: Tensor) -> Tensor:
        """The trunk's output layer on the draft vocabulary: ``[..., D]`` -> ``[..., num_tokens]``."""
        if self._rows is not None:
            return self._rows(hidden)
        if self._held is not None:
            return F.linear(hidden.to(self._held.dtype), self._held)
        if self.trunk.unembed is None:
            raise ValueError(NO_TEXT.format("output layer for tokens"))
        if self.token_map is None:
            return self.trunk.unembed(hidden)
        weight = self.unembedding()
        return F.linear(hidden.to(weight.dtype), weight)

    @contextmanager
    def holding(self) -> Iterator[bool]:
        """While this is open, the draft vocabulary's rows of a trunk that does not learn are chosen once, in the
        precision that products are computed in, and not for every product. Gives whether that is so: a head with an
        output layer of its own, or with the trunk's whole vocabulary, has nothing to choose."""
        weight = self.trunk.weight
        if self.token_map is None or self.private is not None or weight is None or weight.requires_grad:
            yield False
            return
        kind, rows = weight.device.type, self.unembedding()
        mixed = torch.is_autocast_enabled(kind) and rows.dtype != torch.float64  # which autocast leaves alone
        self._held = rows.to(torch.get_autocast_dtype(kind)) if mixed else rows
        try:
            yield True
        finally:
            self._held = None

    def unembedding(self) -> Tensor:
        """The rows of the trunk's output layer that belong to the draft vocabulary ``[num_tokens, D]``."""
        weight = self.trunk.weight
        if weight is None:
            raise ValueError(NO_TEXT.format("output layer for tokens"))
        return weight if self.token_map is None else weight[self.token_map]

    def embed(self, tokens: Tensor) -> Tensor:
        """The input vectors of ``tokens [...]`` of a text: ``[..., D]``."""
        if self.trunk.embed is None:
            raise ValueError(NO_TEXT.format("embedding of tokens"))
        return self.trunk.embed(tokens)

    def to_target(self, ids: Tensor) -> Tensor:
        """Draft ids -> the trunk's ids."""
        return ids if self.token_map is None else self.token_map[ids]

    # -- training ---------------------------------------------------------------------------------------------
    @abstractmethod
    def unroll_states(self, out: LMOutput, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Teacher-forced: yields ``(offset, states [B, T, D])``, one offset at a time.

        ``out.hidden [B, T, taps, D]`` are the trunk's states of positions with the input vectors ``x [B, T, D]``, so
        that ``x`` at t + 1 is what :meth:`read` is given with the state at t. The state at t stands for the position
        ``t + offset``. Nothing at t may depend on vectors at or past ``t + offset``, nor on trunk states past t, nor on
        what ``out.segment`` says to be another document. States whose own inputs reach past the sequence, or that are
        not ``out.wanted``, are unspecified. The caller may back-propagate each yield at once (``shared_pass``: if it
        retains the graph).
        """

    def unroll(self, out: LMOutput, tokens: Tensor) -> Iterator[tuple[int, Tensor]]:
        """:meth:`unroll_states` of a text ``tokens [B, T]``, with its scores: yields ``(offset, logits [B, T,
        num_tokens])``. The logits at t score ``x_{t + offset}``."""
        for offset, states in self.unroll_states(out, self.embed(tokens)):
            score = partial(self._scored, self.offsets.index(offset))
            yield offset, self.where_wanted(out, score, states, shifted(tokens, offset - 1))
            del states  # or they would live while the next are computed

    def _scored(self, depth: int, states: Tensor, before: Tensor) -> Tensor:
        return self.scores(states, depth, before)

    @staticmethod
    def where_wanted(out: LMOutput, make: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """``make`` of ``inputs [B, T, ...]`` where ``out`` wants it, zeros elsewhere: ``[B, T, ...]``.

        Output layers are large, and there is nothing to learn after the positions of a prompt.
        """
        if out.wanted is None:
            return make(*inputs)
        some = make(*(x[out.wanted] for x in inputs))
        return some.new_zeros(*out.wanted.shape, some.shape[-1]).index_put((out.wanted,), some)

    # -- decoding ---------------------------------------------------------------------------------------------
    def open(self, rows: int, device: torch.device, dtype: torch.dtype) -> HeadState:
        """State of rows that have read nothing."""
        window = torch.zeros(rows, self.window, len(self.taps), self.shape.dim, device=device, dtype=dtype)
        return HeadState(window, torch.zeros(rows, self.shape.dim, device=device, dtype=dtype))

    def read(self, state: HeadState, hidden: Tensor, x: Tensor, lengths: Tensor) -> None:
        """Committed positions: trunk states ``hidden [B, T, taps, D]`` and the input vectors ``x [B, T, D]`` of the
        position after each (of a text: the embedding of the following token), of which ``lengths [B]`` per row count.
        What was drafted since the last call leaves."""
        if x.shape[1]:
            both = torch.cat([state.window, hidden], 1)
            newest = lengths[:, None] + torch.arange(self.window, device=lengths.device)
            index = newest[..., None, None].expand(-1, -1, *both.shape[2:])
            state.window = both.gather(1, index)
            state.last = newest_of(x, lengths, state.last)
        state.depth = 0

    @abstractmethod
    def root(self, state: HeadState) -> Tensor:
        """The state ``[B, D]`` of the position after ``last``'s, as an output layer reads it (after the final norm,
        where there is one)."""

    @abstractmethod
    def expand(self, state: HeadState, x: Tensor, parents: Tensor) -> Tensor:
        """New nodes with the input vectors ``x [B, N, D]``, all at one depth -> the states ``[B, N, D]`` of the
        positions of their children.

        ``parents [B, N]`` count the nodes expanded since the last read (-1: node 0, that is ``last``). A head that
        predicts by offset alone ignores the vectors.
        """

    def next_depth(self, state: HeadState) -> int:
        """Go one level down: its depth. Raises ValueError where the head ends."""
        if state.depth + 1 >= self.num_depths and not self.recursive:
            raise ValueError(f"This head drafts {self.num_depths} tokens, not more.")
        state.depth += 1
        return state.depth

    # -- text -------------------------------------------------------------------------------------------------
    def scores(self, states: Tensor, depth: int, before: Tensor) -> Tensor:
        """States ``[..., D]`` made by :meth:`root` (``depth`` 0) or by the ``depth``-th :meth:`expand` -> scores of the
        tokens there ``[..., num_tokens]``, by the head's own output layer of that depth (its last, for all below) or by
        the trunk's. ``before [...]`` is the token before each; heads that do not need it ignore it."""
        if self.private is None:
            return self.unembed(states)
        out: Tensor = self.private[min(depth, len(self.private) - 1)](states)
        return out

    def confidence(self, states: Tensor, depth: int, before: Tensor) -> Tensor | None:
        """The chance ``[B, N]`` that a token drawn from the scores of ``states [B, N, D]`` is kept; arguments as for
        :meth:`scores`.

        None: the head has no opinion besides its scores. It may not depend on the drawn token itself, so that a rule
        may stop drafting by it and stay lossless.
        """
        return None

    def to_config(self) -> dict[str, Any]:
        """The shape of the trunk as a plain mapping."""
        return asdict(self.shape)


class ParallelHead(MTPHead):
    """A head whose predictions depend on trunk states only: one state per offset, drafted all at once."""

    @abstractmethod
    def ahead(self, hidden: Tensor, j: int) -> Tensor:
        """Mixed trunk states ``[..., D]``, each by itself -> the states ``[..., D]`` of ``offsets[j]`` ahead."""

    def unroll_states(self, out: LMOutput, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        for j, offset in enumerate(self.offsets):  # mixed anew for every offset: each may be back-propagated at once
            yield offset, self.where_wanted(out, partial(self.ahead, j=j), self.mix(out.hidden))

    def at_age(self, state: HeadState, j: int, age: int) -> Tensor:
        """Head j on the trunk state of ``age`` positions ago (0: the newest): a state ``[B, D]``."""
        return self.ahead(self.mix(state.window[:, -1 - age]), j)

    def root(self, state: HeadState) -> Tensor:
        return self.at_age(state, 0, 0)

    def expand(self, state: HeadState, x: Tensor, parents: Tensor) -> Tensor:
        return self.at_age(state, self.next_depth(state), 0)[:, None].expand(-1, x.shape[1], -1)


def past_of(out: LMOutput) -> tuple[Tensor, Tensor]:
    """Positions ``[1, T]``, and whom each may look at in training, ``[B or 1, 1, T, T]`` bool: itself and the past, of
    packed rows that of its own document."""
    index, past = causal(out.top)
    if out.segment is not None:
        rows, length = out.segment.shape
        past = dense(within_segments(out.segment), rows, length, out.segment.device)
    return index, past


def masked_past_of(out: LMOutput) -> tuple[Tensor, Mask]:
    """The same for whoever only attends, in the form that attention computes fastest."""
    index, past = causal(out.top)
    if out.segment is None:
        return index, past
    rows, length = out.segment.shape
    return index, mask_of(within_segments(out.segment), rows, length, out.segment.device)


def rows_of(past: Tensor, anchors: Tensor) -> Tensor:
    """Rows ``anchors [B or 1, N]`` of ``past [B or 1, T, T]``: ``[B or 1, N, T]``."""
    b = max(len(past), len(anchors))
    at = anchors.expand(b, -1)[..., None].expand(-1, -1, past.shape[-1])
    return past.expand(b, -1, -1).gather(1, at)


def shifted(x: Tensor, n: int) -> Tensor:
    """``x [B, T, ...]`` -> what stands n positions later; the last entry is repeated at the end."""
    t = x.shape[1]
    return x[:, (torch.arange(t, device=x.device) + n).clamp(max=t - 1)]


def newest_of(new: Tensor, lengths: Tensor, old: Tensor) -> Tensor:
    """The last of the first ``lengths [B]`` entries of ``new [B, T, ...]``, ``old [B, ...]`` where there is none."""
    rows = torch.arange(len(new), device=new.device)
    some = (lengths > 0).view(-1, *[1] * (old.ndim - 1))
    return torch.where(some, new[rows, (lengths - 1).clamp(min=0)], old)
