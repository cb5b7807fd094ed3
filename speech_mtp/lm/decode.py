"""What every language model of groups has in common: a layout, an output layer, and rows that advance by groups.

The decoding loop, the objectives and the training task know a model as :class:`GroupLM` only; whether a talker or
the backbone itself stands behind it is its own affair. A group LM knows nothing of sampling or of sound.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from speech_mtp.layouts.base import Layout
from speech_mtp.lm.cache import KVCache, ancestors_of
from speech_mtp.lm.output import OutputLayer
from speech_mtp.types import Draft, LMOutput, Positions, TextUnits, Verdict


@dataclass(frozen=True)
class GroupLMConfig:
    """What a model must know of the codec whose tokens it predicts."""

    codebook_sizes: tuple[int, ...]
    frame_rate_hz: float
    timbre_dim: int


@dataclass
class DecodeState:
    """Where every row of a running decode stands.

    ``last [B, C]`` is the committed position not yet in the cache, ``pointer, groups, stalled [B]`` the text unit, the
    groups so far and the groups since the pointer moved, ``recent [B, W]`` the newest content codes, ``encoded`` what
    the model made of the text beforehand. ``version`` counts commits.
    """

    cache: KVCache
    units: TextUnits
    encoded: Tensor
    timbre: Tensor
    last: Tensor
    pointer: Tensor
    groups: Tensor
    stalled: Tensor
    recent: Tensor
    version: int = 0

    def clone(self) -> DecodeState:
        """An independent copy: both may go on."""
        copies: dict[str, Any] = {k: v.clone() for k, v in self.__dict__.items() if isinstance(v, Tensor)}
        return replace(self, cache=self.cache.clone(), **copies)


class GroupLM(nn.Module, ABC):
    """Text units in, groups of speech tokens out. Subclasses set the three attributes and fill in the abstract part."""

    config: GroupLMConfig
    layout: Layout
    output: OutputLayer
    reads_states = True
    """Whether the hidden states of text units are used; False for the backbone itself."""

    def to_config(self) -> dict[str, object]:
        return asdict(self.config)

    @abstractmethod
    def forward(self, positions: Positions, units: TextUnits, timbre: Tensor) -> LMOutput:
        """Teacher-forced hidden states of the speech positions, ``[B, T, 1, D]``. ``timbre [B, E]``."""

    @abstractmethod
    def prefill(self, units: TextUnits, timbre: Tensor, size: int = 64) -> DecodeState:
        """Start decoding ``B`` rows of text; room for ``size`` groups at first (it grows)."""

    @abstractmethod
    def extend(self, state: DecodeState, units: TextUnits) -> None:
        """Late text: replace the units of ``state`` by longer ones that begin with the same units."""

    @abstractmethod
    def embed_nodes(self, state: DecodeState, tokens: Tensor, pointer: Tensor) -> Tensor:
        """Speech positions ``tokens [B, M, C]`` that stand at ``pointer [B, M]`` -> ``[B, M, D]``."""

    @abstractmethod
    def trunk_states(self, x: Tensor, index: Tensor, mask: Tensor, cache: KVCache | None = None) -> LMOutput:
        """The transformer: ``x [B, T, D]``, ``index [B, T]``, ``mask [B, 1, T, S]`` bool (True: may look)."""

    # -- decoding ---------------------------------------------------------------------------------------------
    def begin(self, cache: KVCache, units: TextUnits, encoded: Tensor, timbre: Tensor) -> DecodeState:
        """The state before the first group."""
        b, device = len(units.lengths), timbre.device
        zeros = torch.zeros(b, dtype=torch.long, device=device)
        return DecodeState(
            cache=cache,
            units=units,
            encoded=encoded,
            timbre=timbre,
            last=self.layout.nothing(b, device),
            pointer=zeros,
            groups=zeros.clone(),
            stalled=zeros.clone(),
            recent=torch.full((b, 16), -1, device=device),
        )

    def read_text(self, state: DecodeState, text: Tensor) -> None:
        """Put text ``[B, U, D]`` in front of the speech into the empty cache, each row as long as its units."""
        b, width = text.shape[:2]
        index = torch.arange(width, device=text.device).expand(b, -1)
        causal = torch.ones(b, width, width, dtype=torch.bool, device=text.device).tril()
        self.trunk_states(text, index, state.cache.mask(causal), state.cache)
        state.cache.lengths = state.units.lengths.clone()

    @torch.inference_mode()
    def verify(self, state: DecodeState, draft: Draft, taps: tuple[int, ...] = (-1,)) -> LMOutput:
        """One forward over the M nodes of ``draft``; hidden states ``[B, M, 1, D]``. Nothing is committed."""
        assert taps == (-1,), f"a group LM gives its top states only, not taps {taps}"
        m = draft.tokens.shape[1]
        state.cache.grow(int(state.cache.lengths.max()) + m)
        x = self.embed_nodes(state, draft.tokens, self._pointers(state, draft))
        ancestors = ancestors_of(draft.parents)
        index = state.cache.lengths[:, None] + ancestors.sum(-1) - 1
        return self.trunk_states(x, index, state.cache.mask(ancestors), state.cache)

    def _pointers(self, state: DecodeState, draft: Draft) -> Tensor:
        """The pointer at each node: node 0 stands at the row's, later ones move by their own control token."""
        pointers = [state.pointer]
        for i in range(1, draft.tokens.shape[1]):
            above = torch.stack(pointers, 1).gather(1, draft.parents[:, i : i + 1])[:, 0]
            pointers.append(self.layout.move(above, draft.tokens[:, i, 0]))
        return torch.stack(pointers, 1)

    @torch.inference_mode()
    def commit(self, state: DecodeState, draft: Draft, verdict: Verdict, active: Tensor) -> None:
        """Keep the accepted nodes and take ``verdict.next`` as the new last position, for ``active [B]`` rows."""
        length = verdict.length * active
        state.cache.commit(verdict.path, length)
        kept = draft.tokens.gather(1, verdict.path.clamp(min=0)[..., None].expand(-1, -1, draft.tokens.shape[-1]))
        for i in range(draft.tokens.shape[1] + 1):
            final = i == draft.tokens.shape[1]
            # node 0 was counted when it was drawn; nodes 1.. and then the bonus position are new
            tokens = verdict.next if final else kept[:, i]
            fresh = active if final else active & (i > 0) & (i < length)
            self._advance(state, tokens, fresh)
        state.last = torch.where(active[:, None], verdict.next, state.last)
        state.version += 1

    def _advance(self, state: DecodeState, tokens: Tensor, rows: Tensor) -> None:
        moved = self.layout.move(state.pointer, tokens[:, 0])
        still = torch.where(moved == state.pointer, state.stalled + 1, 0)
        content = tokens[:, 1 :: len(self.config.codebook_sizes)]
        recent = torch.cat([state.recent, content], 1)[:, -state.recent.shape[1] :]
        state.stalled = torch.where(rows, still, state.stalled)
        state.pointer = torch.where(rows, moved, state.pointer)
        state.recent = torch.where(rows[:, None], recent, state.recent)
        state.groups = state.groups + rows


def behind_text(text: Tensor, lengths: Tensor, x: Tensor, index: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
    """Speech ``x [B, T, D]`` behind text ``[B, U, D]`` of ``lengths [B]``: joint x, rotary index, validity [B, U + T].

    A row's speech goes on counting where its own text ends, as it does in decoding.
    """
    at = torch.arange(text.shape[1], device=x.device).expand(len(x), -1)
    joined = torch.cat([text, x], 1)
    return joined, torch.cat([at, lengths[:, None] + index], 1), torch.cat([at < lengths[:, None], valid], 1)
