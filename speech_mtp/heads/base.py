"""What a head is: it looks further ahead than the trunk's next token, so that a rule can draft with it.

Life of a head in decoding::

    state = head.open(rows)                     nothing read yet
    head.read(state, hidden, tokens, following, lengths)   the prompt, and after every verification what was kept
    head.root(state)                            scores of the token after ``last``: the children of node 0
    head.expand(state, tokens, parents)         drafted nodes, one depth at a time -> scores of their children
    head.read(...)                              drafted entries leave, verified ones enter

Where ``h_t`` is the trunk's state at the newest position in its cache, ``last`` is ``x_{t+1}``, which is known, and the
first drafted token is ``x_{t+2}``: offset 2 from ``h_t``.

Training asks for the same numbers at all positions at once: :meth:`MTPHead.unroll`. A head knows nothing of rules,
of sampling, or of how its trunk is built.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from itertools import pairwise
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp.nn.packed import PackedLinear, pack_linears
from speech_mtp.nn.transformer import Attention, BlockShape, SwiGLU
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
    final norm) ``[..., D]`` -> ``[..., V]``, ``weight [V, D]`` of that map, and ``norm``, the final norm itself."""

    embed: Callable[[Tensor], Tensor]
    unembed: Callable[[Tensor], Tensor]
    weight: Tensor
    norm: nn.Module


@dataclass
class HeadState:
    """What a head keeps of every row. ``window [B, W, taps, D]`` are the newest trunk states, newest last (zeros before
    the text), ``last [B]`` the newest known token, ``depth`` how many levels have been expanded since the last read."""

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
        if draft_vocab is not None and not 0 < draft_vocab <= shape.vocab_size:
            raise ValueError(f"draft_vocab is {draft_vocab}; it must be between 1 and {shape.vocab_size}.")
        self.shape, self.offsets, self.taps = shape, tuple(offsets), tuple(taps)
        self.mix = Mixture(feed, len(self.taps), shape.dim)
        self.num_tokens = draft_vocab or shape.vocab_size
        ids = None if draft_vocab is None else torch.arange(draft_vocab)
        self.register_buffer("token_map", ids)
        self.private: PrivateUnembedding | None = None  # a head with output layers of its own puts them here
        self._binding: tuple[Binding, ...] = ()
        self._rows: PackedLinear | None = None
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

    recursive = False
    """Whether :meth:`expand` may be called more than ``num_depths - 1`` times."""

    identity_at_start = False
    """Whether an untrained head that reads the top layer scores its first offset as the trunk scores the next token."""

    shared_pass = False
    """Whether the offsets of :meth:`unroll` share one pass: back-propagating one by one needs the graph retained."""

    drafts_as_trained = True
    """Whether :meth:`unroll` gives the numbers that :meth:`root` and :meth:`expand` give when fed with the true tokens.
    A head that is published with another training says so here, and why."""

    # -- the trunk --------------------------------------------------------------------------------------------
    def bind(self, binding: Binding) -> None:
        """Borrow the trunk's embedding and output layer; held in a tuple, so they are not parameters of the head."""
        self._binding, self._rows = (binding,), None
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
        self._rows = None

    def prepare(self) -> Self:
        """Make ready to decode fast: weights are packed. Training the head further needs to load it anew."""
        for module in self.modules():
            if isinstance(module, Attention | SwiGLU) and type(module) in (Attention, SwiGLU):  # as they are
                module.pack()
        pack_linears(self)
        if self.token_map is not None and self.private is None:
            self._rows = PackedLinear(self.unembedding())
        return self

    def unembed(self, hidden: Tensor) -> Tensor:
        """The trunk's output layer on the draft vocabulary: ``[..., D]`` -> ``[..., num_tokens]``."""
        if self._rows is not None:
            return self._rows(hidden)
        if self.token_map is None:
            return self.trunk.unembed(hidden)
        return F.linear(hidden.to(self.trunk.weight.dtype), self.unembedding())

    def output(self, hidden: Tensor, j: int) -> Tensor:
        """Output layer j of the head's own if it has any, else the trunk's: ``[..., D]`` -> ``[..., num_tokens]``."""
        if self.private is None:
            return self.unembed(hidden)
        out: Tensor = self.private[j](hidden)
        return out

    def unembedding(self) -> Tensor:
        """The rows of the trunk's output layer that belong to the draft vocabulary ``[num_tokens, D]``."""
        weight = self.trunk.weight
        return weight if self.token_map is None else weight[self.token_map]

    def to_target(self, ids: Tensor) -> Tensor:
        """Draft ids -> the trunk's ids."""
        return ids if self.token_map is None else self.token_map[ids]

    # -- training ---------------------------------------------------------------------------------------------
    @abstractmethod
    def unroll(self, out: LMOutput, tokens: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Teacher-forced: yields ``(offset, logits [B, T, num_tokens])``, one offset at a time.

        ``out.hidden [B, T, taps, D]`` are the trunk's states of ``tokens [B, T]``; the logits at t score
        ``x_{t + offset}``. Nothing at t may depend on tokens at or past ``t + offset``, nor on states past t. Logits
        whose own inputs reach past the sequence, or that are not ``out.wanted``, are unspecified. The caller may
        back-propagate each yield at once (``shared_pass``: if it retains the graph).
        """

    @staticmethod
    def where_wanted(out: LMOutput, score: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """``score`` of ``inputs [B, T, ...]`` where ``out`` wants it, zeros elsewhere: ``[B, T, num_tokens]``.

        Output layers are large, and there is nothing to learn after the positions of a prompt.
        """
        if out.wanted is None:
            return score(*inputs)
        some = score(*(x[out.wanted] for x in inputs))
        return some.new_zeros(*out.wanted.shape, some.shape[-1]).index_put((out.wanted,), some)

    # -- decoding ---------------------------------------------------------------------------------------------
    def open(self, rows: int, device: torch.device, dtype: torch.dtype) -> HeadState:
        """State of rows that have read nothing."""
        window = torch.zeros(rows, self.window, len(self.taps), self.shape.dim, device=device, dtype=dtype)
        return HeadState(window, torch.zeros(rows, dtype=torch.long, device=device))

    def read(self, state: HeadState, hidden: Tensor, tokens: Tensor, following: Tensor, lengths: Tensor) -> None:
        """Committed positions: trunk states ``[B, T, taps, D]`` of ``tokens [B, T]``, the token ``following`` each, of
        which ``lengths [B]`` per row count. What was drafted since the last call leaves."""
        if tokens.shape[1]:
            both = torch.cat([state.window, hidden], 1)
            newest = lengths[:, None] + torch.arange(self.window, device=lengths.device)
            index = newest[..., None, None].expand(-1, -1, *both.shape[2:])
            state.window = both.gather(1, index)
            end = (lengths - 1).clamp(min=0)[:, None]
            state.last = torch.where(lengths > 0, following.gather(1, end)[:, 0], state.last)
        state.depth = 0

    @abstractmethod
    def root(self, state: HeadState) -> Tensor:
        """Scores of the token after ``last``: ``[B, num_tokens]``."""

    @abstractmethod
    def expand(self, state: HeadState, tokens: Tensor, parents: Tensor) -> Tensor:
        """New nodes, target ids ``tokens [B, N]``, all at the same depth -> scores of their children.

        ``parents [B, N]`` count the nodes expanded since the last read (-1: node 0, that is ``last``).
        Returns ``[B, N, num_tokens]``. A head that predicts by offset alone ignores the tokens.
        """

    def confidence(self, state: HeadState) -> Tensor | None:
        """For the nodes scored last, the chance ``[B, N]`` that a child drawn from those scores is kept.

        None: the head has no opinion besides its scores. It may not depend on the child itself, so that a rule may stop
        drafting by it and stay lossless.
        """
        return None

    def to_config(self) -> dict[str, Any]:
        """The shape of the trunk as a plain mapping."""
        return asdict(self.shape)


class ParallelHead(MTPHead):
    """A head whose predictions depend on trunk states only: one set of scores per offset, drafted all at once."""

    @abstractmethod
    def ahead(self, hidden: Tensor, j: int) -> Tensor:
        """Mixed states ``[..., D]``, each by itself -> scores ``[..., num_tokens]`` of what is ``offsets[j]`` ahead."""

    def unroll(self, out: LMOutput, tokens: Tensor) -> Iterator[tuple[int, Tensor]]:
        for j, offset in enumerate(self.offsets):
            yield offset, self.where_wanted(out, partial(self.ahead, j=j), self.mix(out.hidden))

    def at_age(self, state: HeadState, j: int, age: int) -> Tensor:
        """Head j on the trunk state of ``age`` positions ago (0: the newest), ``[B, num_tokens]``."""
        return self.ahead(self.mix(state.window[:, -1 - age]), j)

    def root(self, state: HeadState) -> Tensor:
        return self.at_age(state, 0, 0)

    def expand(self, state: HeadState, tokens: Tensor, parents: Tensor) -> Tensor:
        state.depth += 1
        if state.depth >= self.num_depths:
            raise ValueError(f"This head drafts {self.num_depths} tokens, not more.")
        return self.at_age(state, state.depth, 0)[:, None].expand(-1, tokens.shape[1], -1)
