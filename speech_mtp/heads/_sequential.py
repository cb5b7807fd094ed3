"""What heads share that draft token by token with keys and values of their own: DeepSeek, FastMTP, EAGLE, EAGLE-3.

Such a head reads *pairs*: pair t is the trunk state ``h_t`` and the input vector ``x_{t+1}`` of the next position, and
its output is the state of position t + 2. All committed pairs stand in the head's cache. A drafted node is one more
pair, whose state is the head's own output at its parent; it sees the committed pairs and its ancestors, and nothing
else of the draft.

Training repeats this at all anchors t at once. Every step's queries see the pairs up to their anchor and, of later
steps, only what belongs to the same anchor: the diagonal (EAGLE-3, arXiv:2503.01840, "training-time test"; HASS,
arXiv:2408.15766). So :meth:`SequentialHead.unroll_states` computes exactly what drafting with the true vectors would.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp.heads.base import HeadState, MTPHead, TrunkShape, newest_of, past_of, rows_of, shifted
from speech_mtp.nn.kv_cache import KVCache
from speech_mtp.nn.transformer import LlamaBlock, causal
from speech_mtp.nn.visibility import Mask
from speech_mtp.types import LMOutput

ROOM = 64
"""Entries per row that a new cache has room for; it grows."""


@dataclass(frozen=True)
class Place:
    """Where new entries stand: ``at [B, T]`` their numbers in the text. They see the valid entries of ``committed``
    and, of those behind these, ``ancestors [B, T, M + T]``: M that have been drafted, then themselves. None: there are
    no M, and each sees those before it."""

    at: Tensor
    ancestors: Tensor | None
    committed: KVCache

    @cached_property
    def mask(self) -> Tensor:
        """``[B, 1, T, S]`` bool: which entries of the cache each sees."""
        sees = self.ancestors
        if sees is None:
            sees = causal(self.at[..., None])[1][:, 0].expand(len(self.at), -1, -1)
        return self.committed.mask(sees, _seen(self.committed, sees.shape[2]))

    @cached_property
    def cache(self) -> KVCache:
        """The cache as it is written to: behind what it counts as valid."""
        drafted = 0 if self.ancestors is None else self.ancestors.shape[2] - self.at.shape[1]
        kept = self.committed
        return KVCache(kept.keys, kept.values, kept.lengths + drafted) if drafted else kept


@dataclass(kw_only=True)
class SequentialState(HeadState):
    """``cache`` holds the committed pairs, drafted nodes behind them; ``newest [B, L, D]`` are the outputs of the L
    modules at the newest pair, ``nodes [B, M, L, D]`` those at the M nodes drafted since the last read, ``ancestors
    [B, M, M]`` which nodes are on the way to each (itself included)."""

    cache: KVCache
    newest: Tensor
    nodes: Tensor
    ancestors: Tensor


class MTPModule(nn.Module):
    """Norms of embedding and state, a projection of both to one, a block of the trunk's kind, a final norm.

    DeepSeek-V3 (arXiv:2412.19437, section 2.2), whose parameter names these are. ``order`` says which half of the
    projection reads what: its released weights have ``embedding_first``, MiMo's (arXiv:2505.07608) ``hidden_first``.
    """

    def __init__(self, shape: TrunkShape, order: str, layer: int = 0) -> None:
        super().__init__()
        if order not in ("embedding_first", "hidden_first"):
            raise ValueError(f"order is {order!r}; it must be 'embedding_first' or 'hidden_first'.")
        self.order = order
        self.enorm = nn.RMSNorm(shape.dim, eps=shape.rms_norm_eps)
        self.hnorm = nn.RMSNorm(shape.dim, eps=shape.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * shape.dim, shape.dim, bias=False)
        self.block = LlamaBlock(shape.block(), layer)
        self.norm = nn.RMSNorm(shape.dim, eps=shape.rms_norm_eps)

    def forward(self, hidden: Tensor, x: Tensor, index: Tensor, mask: Mask, cache: KVCache | None = None) -> Tensor:
        """States and input vectors ``[B, T, D]`` -> states ``[B, T, D]`` that the output layer can read."""
        pair = [self.enorm(x), self.hnorm(hidden)]
        if self.order == "hidden_first":
            pair.reverse()
        out: Tensor = self.norm(self.block(self.eh_proj(torch.cat(pair, -1)), index, mask, cache))
        return out


class SequentialHead(MTPHead):
    """``depth`` adjacent tokens, by ``num_modules`` modules, each with its own layer of the cache."""

    shared_pass = True

    def __init__(
        self,
        shape: TrunkShape,
        depth: int,
        num_modules: int,
        taps: tuple[int, ...],
        feed: str,
        draft_vocab: int | None,
    ) -> None:
        super().__init__(shape, tuple(range(2, 2 + depth)), taps, feed, draft_vocab)
        self.num_modules = num_modules

    @abstractmethod
    def walk(self, out: LMOutput, x: Tensor) -> Iterator[Tensor]:
        """Teacher-forced outputs ``[B, T, D]``, one depth after another, each built on the one before."""

    @abstractmethod
    def enter(self, state: SequentialState, hidden: Tensor, x: Tensor, place: Place) -> Tensor:
        """Committed pairs, mixed states ``[B, T, D]`` and vectors ``x [B, T, D]`` -> outputs ``[B, T, L, D]``."""

    @abstractmethod
    def extend(self, state: SequentialState, above: Tensor, x: Tensor, place: Place) -> Tensor:
        """Drafted nodes: their parents' outputs ``above [B, N, L, D]`` and vectors -> outputs ``[B, N, L, D]``."""

    def readable(self, output: Tensor) -> Tensor:
        """Outputs ``[..., D]``, which the next step reads -> states ``[..., D]`` that an output layer can read."""
        return output

    def unroll_states(self, out: LMOutput, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        for offset, output in zip(self.offsets, self.walk(out, x), strict=True):
            yield offset, self.readable(output)

    def open(self, rows: int, device: torch.device, dtype: torch.dtype) -> SequentialState:
        base, s, modules = super().open(rows, device, dtype), self.shape, self.num_modules
        return SequentialState(
            window=base.window,
            last=base.last,
            cache=KVCache.empty(modules, rows, s.num_kv_heads, ROOM, s.head_dim, device, dtype),
            newest=torch.zeros(rows, modules, s.dim, device=device, dtype=dtype),
            nodes=torch.zeros(rows, 0, modules, s.dim, device=device, dtype=dtype),
            ancestors=torch.zeros(rows, 0, 0, device=device, dtype=torch.bool),
        )

    @torch.inference_mode()
    def read(self, state: HeadState, hidden: Tensor, x: Tensor, lengths: Tensor) -> None:
        assert isinstance(state, SequentialState)
        super().read(state, hidden, x, lengths)
        state.nodes, state.ancestors = state.nodes[:, :0], state.ancestors[:, :0, :0]
        t = x.shape[1]
        if not t:
            return
        cache = state.cache
        cache.make_room(t)
        place = Place(cache.lengths[:, None] + torch.arange(t, device=x.device), None, cache)
        state.newest = newest_of(self.enter(state, self.mix(hidden), x, place), lengths, state.newest)
        cache.advance(lengths, t)

    @torch.inference_mode()
    def root(self, state: HeadState) -> Tensor:
        assert isinstance(state, SequentialState)
        return self.readable(state.newest[:, 0])

    @torch.inference_mode()
    def expand(self, state: HeadState, x: Tensor, parents: Tensor) -> Tensor:
        assert isinstance(state, SequentialState)
        depth = self.next_depth(state)
        m, n = state.nodes.shape[1], x.shape[1]
        state.ancestors = _grown(state.ancestors, parents)
        cache = state.cache
        cache.make_room(m + n)
        sees = state.ancestors[:, m:]
        place = Place(cache.lengths[:, None] + sees.sum(-1) - 1, sees, cache)
        known = torch.cat([state.newest[:, None], state.nodes], 1)
        above = known.gather(1, (parents + 1)[..., None, None].expand(-1, -1, *known.shape[2:]))
        y = self.extend(state, above, x, place)
        state.nodes = torch.cat([state.nodes, y], 1)
        return self.readable(y[:, :, min(depth, self.num_modules - 1)])


class RecursiveHead(SequentialHead):
    """One module, applied to its own outputs. It can be expanded for ever."""

    recursive = True

    def __init__(
        self, shape: TrunkShape, depth: int, taps: tuple[int, ...], feed: str, draft_vocab: int | None
    ) -> None:
        super().__init__(shape, depth, 1, taps, feed, draft_vocab)

    @abstractmethod
    def step(self, hidden: Tensor, x: Tensor, index: Tensor, mask: Tensor, cache: KVCache) -> Tensor:
        """The module once: states and vectors ``[B, T, D]`` -> what it will be fed next, ``[B, T, D]``."""

    alone = True
    """Whether a later step sees, of all later steps, only its own anchor's: then other anchors can be left out."""

    def seen(self, past: Tensor, j: int) -> Tensor:
        """``[B or 1, 1, Q, T + j Q]`` bool: what the Q queries of step j (from 0) see of the entries of steps 0..j,
        side by side: of step 0 the ``past [B or 1, 1, Q, T]`` up to their anchor, of later steps only their own."""
        own = torch.eye(past.shape[2], dtype=torch.bool, device=past.device).expand(len(past), 1, -1, -1)
        return torch.cat([past] + [own] * j, -1)

    def walk(self, out: LMOutput, x: Tensor) -> Iterator[Tensor]:
        """Step 0 enters the pairs of all positions. Each is an anchor, whose later steps are a chain of its own::

                          entries of step 0    of step 1    of step 2
            anchor 0        x  .  .  .         x  .  .  .   x  .  .  .
            anchor 1        x  x  .  .         .  x  .  .   .  x  .  .
            anchor 2        x  x  x  .         .  .  x  .   .  .  x  .
            anchor 3        x  x  x  x         .  .  .  x   .  .  .  x      x: seen by step 2 of this anchor

        An anchor that is not wanted has no row and no column in the later steps.
        """
        hidden, s = self.mix(out.hidden), self.shape
        index, past = past_of(out)
        trace = _Trace.empty(1, len(x), s.num_kv_heads, 0, s.head_dim, hidden.device, hidden.dtype)
        hidden = self.step(hidden, shifted(x, 1), index, past, trace)
        yield hidden
        wanted = out.wanted if self.alone else None
        anchors, real = (index, None) if wanted is None else first_true(wanted)
        hidden, past = taken(hidden, anchors), rows_of(past[:, 0], anchors)[:, None]
        for j in range(1, len(self.offsets)):
            after = taken(x, (anchors + j + 1).clamp(max=x.shape[1] - 1))
            hidden = self.step(hidden, after, anchors + j, self.seen(past, j), trace)
            yield hidden if wanted is None else hidden.new_zeros(x.shape).index_put((wanted,), hidden[real])

    def enter(self, state: SequentialState, hidden: Tensor, x: Tensor, place: Place) -> Tensor:
        return self.step_at(hidden, x, place)[:, :, None]

    def extend(self, state: SequentialState, above: Tensor, x: Tensor, place: Place) -> Tensor:
        return self.step_at(above[:, :, 0], x, place)[:, :, None]

    def step_at(self, hidden: Tensor, x: Tensor, place: Place) -> Tensor:
        """:meth:`step` in decoding."""
        return self.step(hidden, x, place.at, place.mask, place.cache)


class _Trace(KVCache):
    """The entries of an unrolled draft, ``T`` per step, side by side. Nothing is overwritten, so gradients pass."""

    def write(self, layer: int, keys: Tensor, values: Tensor, seen: int | None = None) -> tuple[Tensor, Tensor]:
        self.keys = torch.cat([self.keys, keys[None]], 3)
        self.values = torch.cat([self.values, values[None]], 3)
        return self.keys[layer, :, :, :seen], self.values[layer, :, :, :seen]


def _seen(cache: KVCache, more: int) -> int:
    """How many entries attention reads with ``more`` behind the valid ones: as few as can be known without a copy."""
    return cache.longest + more if cache.lengths.device.type == "cpu" else cache.size


def first_true(mask: Tensor) -> tuple[Tensor, Tensor]:
    """The positions ``[B, N]`` of the true entries of ``mask [B, T]``, ascending, N the most of a row; and which of
    them are such ``[B, N]``: others fill up the row."""
    count = mask.sum(1)
    order = torch.sort(mask.byte(), dim=1, descending=True, stable=True).indices[:, : max(1, int(count.max()))]
    return order, torch.arange(order.shape[1], device=mask.device) < count[:, None]


def taken(x: Tensor, at: Tensor) -> Tensor:
    """Entries ``at [B or 1, N]`` of ``x [B, T, D]``."""
    return x.gather(1, at[..., None].expand(len(x), -1, x.shape[-1]))


def _grown(ancestors: Tensor, parents: Tensor) -> Tensor:
    """``ancestors [B, M, M]`` and N more nodes, children of ``parents [B, N]`` -> ``[B, M + N, M + N]``."""
    m, n = ancestors.shape[1], parents.shape[1]
    wide = F.pad(ancestors, (0, n, 1, 0))  # its first row is node 0, which stands among the committed pairs
    own = F.pad(torch.eye(n, dtype=torch.bool, device=parents.device), (m, 0))
    new = wide.gather(1, (parents + 1)[..., None].expand(-1, -1, m + n)) | own
    return torch.cat([wide[:, 1:], new], 1)
