"""DFlash (arXiv:2602.06036): all drafts in one pass over a block of masks that looks at the trunk's states.

The block is ``[last token, mask, ..., mask]``; its slots see each other in both directions, and every layer also sees
the trunk's states as further keys and values, made by the matrices that serve the block. Only those of committed
positions are kept, so nothing has to be taken back after a rejection, and reading the prompt costs no more than
projecting it. Slot k predicts the token at its own position, k after ``last``.

Unlike the published drafters the mask is a learned vector, unless ``mask_id`` names a token whose embedding serves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from speech_mtp.heads.base import HeadState, MTPHead, TrunkShape, past_of, rows_of
from speech_mtp.nn.kv_cache import KVCache
from speech_mtp.nn.transformer import Attention, BlockShape, LlamaBlock, rotate
from speech_mtp.types import LMOutput


class NormedAttention(Attention):
    """Attention with RMS norms on every head's queries and keys (Qwen3)."""

    def __init__(self, shape: BlockShape, layer: int = 0) -> None:
        super().__init__(shape, layer)
        self.q_norm = nn.RMSNorm(shape.head_dim, eps=shape.rms_norm_eps)
        self.k_norm = nn.RMSNorm(shape.head_dim, eps=shape.rms_norm_eps)

    def keys_values(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        keys = self.k_norm(self.heads(self.k_proj(x)))
        return rotate(keys, index, self.shape.rope_theta), self.heads(self.v_proj(x))

    def queries(self, x: Tensor, index: Tensor) -> Tensor:
        return rotate(self.q_norm(self.heads(self.q_proj(x))), index, self.shape.rope_theta)


class DraftLayer(LlamaBlock):
    """A block of the drafter."""

    def __init__(self, shape: BlockShape, layer: int) -> None:
        super().__init__(shape, layer)
        self.self_attn = NormedAttention(shape, layer)


@dataclass(kw_only=True)
class BlockState(HeadState):
    """``cache`` holds keys and values of the trunk's states, ``slots [B, K, D]`` what :meth:`DFlash.root` made."""

    cache: KVCache
    slots: Tensor | None = None


@dataclass
class _Context(KVCache):
    """Keys and values of trunk states for training: those of the block are joined, not stored, and gradients flow."""

    def write(self, layer: int, keys: Tensor, values: Tensor, seen: int | None = None) -> tuple[Tensor, Tensor]:
        keys = torch.cat([self.keys[layer], keys], 2)
        values = torch.cat([self.values[layer], values], 2)
        return keys[:, :, :seen], values[:, :, :seen]


class DFlash(MTPHead):
    """``num_drafts`` tokens by ``num_layers`` layers as wide as the trunk's.

    ``taps`` default to as many layers of the trunk as the head has, spread from its second to its third last.
    """

    shared_pass = True

    from_anchor = False
    """Whether slot 0, which holds ``last``, predicts a token: then every slot predicts the one after its position."""

    def __init__(
        self,
        shape: TrunkShape,
        num_drafts: int = 7,
        num_layers: int = 2,
        taps: tuple[int, ...] | None = None,
        feed: str = "concat",
        draft_vocab: int | None = None,
        mask_id: int | None = None,
    ) -> None:
        taps = spread(num_layers, shape.num_layers) if taps is None else tuple(taps)
        super().__init__(shape, tuple(range(2, 2 + num_drafts)), taps, feed, draft_vocab)
        if mask_id is not None and not 0 <= mask_id < shape.vocab_size:
            raise ValueError(f"mask_id is {mask_id}; the trunk knows tokens 0 to {shape.vocab_size - 1}.")
        self.num_slots = num_drafts + (not self.from_anchor)
        self.hidden_norm = nn.RMSNorm(shape.dim, eps=shape.rms_norm_eps)
        self.layers = nn.ModuleList(DraftLayer(shape.block(), i) for i in range(num_layers))
        self.norm = nn.RMSNorm(shape.dim, eps=shape.rms_norm_eps)
        self.mask_id = mask_id
        self.mask = nn.Parameter(0.02 * torch.randn(shape.dim)) if mask_id is None else None

    def blocks(self, last: Tensor) -> Tensor:
        """``last [..., A, D]`` -> what the slots of their blocks hold, ``[..., A, slots, D]``."""
        mask = self.mask if self.mask_id is None else self.embed(torch.full((), self.mask_id, device=last.device))
        assert mask is not None
        masks = mask.to(last.dtype).expand(*last.shape[:-1], self.num_slots - 1, -1)
        return torch.cat([last[..., None, :], masks], -2)

    def project(self, hidden: Tensor, index: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Trunk states ``[B, T, taps, D]`` at ``index [B, T]`` -> per layer, keys and values ``[B, H, T, d]``."""
        context = self.hidden_norm(self.mix(hidden))
        return [layer.self_attn.keys_values(context, index) for layer in self._layers()]

    def _layers(self) -> Iterator[DraftLayer]:
        for layer in self.layers:
            assert isinstance(layer, DraftLayer)
            yield layer

    def run(self, x: Tensor, index: Tensor, mask: Tensor, cache: KVCache) -> Tensor:
        """Slots ``x [B, T, D]`` through all layers and the final norm."""
        for layer in self._layers():
            x = layer(x, index, mask, cache)
        out: Tensor = self.norm(x)
        return out

    # -- training ---------------------------------------------------------------------------------------------
    def unroll_states(self, out: LMOutput, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        every = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        return self.unroll_states_at(out, x, every)

    def unroll_states_at(self, out: LMOutput, x: Tensor, anchors: Tensor) -> Iterator[tuple[int, Tensor]]:
        """As :meth:`unroll_states` for blocks after the positions ``anchors [B, A]`` only: states ``[B, A, D]``.

        The memory of the one pass grows with A times (T + A times slots).
        """
        yield from zip(self.offsets, self.train_slots(out, x, anchors).unbind(2), strict=True)

    def train_slots(self, out: LMOutput, x: Tensor, anchors: Tensor) -> Tensor:
        """States of the predicting slots ``[B, A, K, D]``: blocks lie one behind the other, blind to each other."""
        b, t, d = x.shape
        device, width = x.device, self.num_slots
        known = self.project(out.hidden, torch.arange(t, device=device).expand(b, -1))
        keys, values = (torch.stack(part) for part in zip(*known, strict=True))
        context = _Context(keys, values, torch.full((b,), t, device=device))
        at = anchors + 1  # the position of ``last``; where the text ends, any vector will do
        last = x.gather(1, at.clamp(max=t - 1)[..., None].expand(-1, -1, d))
        slots = self.blocks(last).flatten(1, 2)
        index = (at[..., None] + torch.arange(width, device=device)).flatten(1)
        _, seen = past_of(out)
        past = rows_of(seen[:, 0], anchors).repeat_interleave(width, 1)
        block = torch.arange(slots.shape[1], device=device) // width
        own = (block[:, None] == block).expand(b, -1, -1)
        slots = self.run(slots, index, torch.cat([past, own], -1)[:, None], context)
        return slots.unflatten(1, (-1, width))[:, :, -self.num_depths :]

    # -- decoding ---------------------------------------------------------------------------------------------
    def open(self, rows: int, device: torch.device, dtype: torch.dtype) -> BlockState:
        plain = super().open(rows, device, dtype)
        s = self.shape
        cache = KVCache.empty(len(self.layers), rows, s.num_kv_heads, 128, s.head_dim, device, dtype)
        return BlockState(window=plain.window, last=plain.last, cache=cache)

    def read(self, state: HeadState, hidden: Tensor, x: Tensor, lengths: Tensor) -> None:
        assert isinstance(state, BlockState)
        super().read(state, hidden, x, lengths)
        cache, t = state.cache, hidden.shape[1]
        if t:
            cache.make_room(t)
            index = cache.lengths[:, None] + torch.arange(t, device=hidden.device)
            for i, (keys, values) in enumerate(self.project(hidden, index)):
                cache.write(i, keys, values)
            cache.advance(lengths, t)
        state.slots = None

    def root(self, state: HeadState) -> Tensor:
        assert isinstance(state, BlockState)
        cache, width = state.cache, self.num_slots
        cache.make_room(width)
        index = cache.lengths[:, None] + torch.arange(width, device=state.last.device)
        both_ways = torch.ones(len(state.last), width, width, dtype=torch.bool, device=state.last.device)
        x = self.run(self.blocks(state.last), index, cache.mask(both_ways), cache)
        state.slots = x[:, -self.num_depths :]
        return state.slots[:, 0]

    def expand(self, state: HeadState, x: Tensor, parents: Tensor) -> Tensor:
        assert isinstance(state, BlockState)
        assert state.slots is not None, "root() comes before expand()"
        return state.slots[:, self.next_depth(state), None].expand(-1, x.shape[1], -1)


def spread(count: int, num_layers: int) -> tuple[int, ...]:
    """``count`` taps of a trunk, evenly from the output of its second layer to that of its third last; the middle for
    one. Trunks too small for that give fewer."""
    if count == 1:
        wanted = [num_layers // 2]
    else:
        first, last = 1, max(1, num_layers - 3)
        wanted = [round(first + (last - first) * i / (count - 1)) for i in range(count)]
    return tuple(sorted({min(layer + 1, num_layers - 1) for layer in wanted}))
