"""The speech language model: backbone states and text units in, groups of speech tokens out.

``SpeechLM`` holds the talker, its embeddings and its output layer. The backbone is not part of it: the units arrive
with the backbone's hidden states already joined (:mod:`speech_mtp.lm.units`), so a talker can be trained from
stored states and shipped without the LLM. The model knows nothing of sampling or of sound.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from speech_mtp import plugins
from speech_mtp.layouts.base import Layout
from speech_mtp.lm.cache import KVCache, ancestors_of
from speech_mtp.lm.embeddings import GroupFusion, UnitEncoder, Window
from speech_mtp.lm.output import build_output
from speech_mtp.lm.talker import Talker
from speech_mtp.types import Draft, Kind, LMOutput, Positions, TextUnits, Verdict


@dataclass(frozen=True)
class SpeechLMConfig:
    """Everything that fixes the shapes of a speech LM. ``layout`` is a plug-in specification without sizes."""

    codebook_sizes: tuple[int, ...]
    frame_rate_hz: float
    timbre_dim: int
    num_phonemes: int
    backbone_dim: int
    frames_per_group: int = 5
    layout: dict[str, object] = field(default_factory=lambda: {"name": "aligned"})
    fusion: str = "concat"
    output: str = "depth"
    dim: int = 320
    num_layers: int = 5
    heads: int = 5
    hidden: int = 864
    unit_dim: int = 96
    past: int = 3
    ahead: int = 10
    dropout: float = 0.0


@dataclass
class DecodeState:
    """Where every row of a running decode stands.

    ``last [B, C]`` is the committed position not yet in the cache, ``pointer, groups, stalled [B]`` the text unit, the
    groups so far and the groups since the pointer moved, ``recent [B, W]`` the newest content codes. ``version`` counts
    commits.
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


class SpeechLM(nn.Module):
    """Talker, embeddings and output layer of one layout."""

    def __init__(self, config: SpeechLMConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.layout: Layout = plugins.build(
            "layouts", dict(c.layout), codebook_sizes=c.codebook_sizes, frames_per_group=c.frames_per_group
        )
        self.windowed = c.layout["name"] == "aligned"
        sizes = self.layout.channel_sizes
        self.fusion = GroupFusion(sizes, c.dim, c.fusion)
        self.units = UnitEncoder(c.num_phonemes, c.backbone_dim, c.unit_dim)
        self.window = Window(c.unit_dim, c.dim, c.past, c.ahead) if self.windowed else None
        self.prefix = None if self.windowed else nn.Linear(c.unit_dim, c.dim)
        self.timbre = nn.Linear(c.timbre_dim, c.dim)
        self.talker = Talker(c.dim, c.num_layers, c.heads, c.hidden, c.dropout)
        self.output = build_output(c.output, c.dim, sizes)

    @classmethod
    def from_config(cls, entries: dict[str, object]) -> SpeechLM:
        """From the ``to_config`` of another one (JSON lists become tuples)."""
        return cls(SpeechLMConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in entries.items()}))  # type: ignore[arg-type]

    def to_config(self) -> dict[str, object]:
        return asdict(self.config)

    # -- training ---------------------------------------------------------------------------------------------
    def embed(
        self, tokens: Tensor, encoded: Tensor, units: TextUnits, timbre: Tensor, pointer: Tensor | None
    ) -> Tensor:
        """Speech positions ``tokens [B, T, C]`` -> ``[B, T, D]``."""
        x = self.fusion(tokens) + self.timbre(timbre)[:, None]
        if self.window is not None:
            assert pointer is not None, "the aligned layout needs pointers"
            x = x + self.window(encoded, units.lengths, pointer)
        return x

    def forward(self, positions: Positions, units: TextUnits, timbre: Tensor) -> LMOutput:
        """Teacher-forced hidden states of the speech positions, ``[B, T, 1, D]``. ``timbre [B, E]``."""
        encoded = self.units(units)
        x = self.embed(positions.tokens, encoded, units, timbre, positions.pointer)
        valid = positions.kind != Kind.PAD
        index = positions.index
        skip = 0
        if self.prefix is not None:
            text = self.prefix(encoded) + self.timbre(timbre)[:, None]
            skip = text.shape[1]
            at = torch.arange(skip, device=x.device).expand(len(x), -1)
            x = torch.cat([text, x], 1)
            valid = torch.cat([at < units.lengths[:, None], valid], 1)
            index = torch.cat([at, units.lengths[:, None] + index], 1)
        t = x.shape[1]
        causal = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
        mask = (causal & valid[:, None, :]) | torch.eye(t, dtype=torch.bool, device=x.device)
        out = self.talker(x, index, mask[:, None])
        return LMOutput(out.hidden[:, skip:])

    # -- decoding ---------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def prefill(self, units: TextUnits, timbre: Tensor, size: int = 64) -> DecodeState:
        """Start decoding ``B`` rows of text; room for ``size`` groups at first (it grows)."""
        b, device = len(units.lengths), timbre.device
        encoded = self.units(units)
        start = 0 if self.prefix is None else int(units.lengths.max())
        zeros = torch.zeros(b, dtype=torch.long, device=device)
        state = DecodeState(
            cache=self.talker.open(b, start + size, device),
            units=units,
            encoded=encoded,
            timbre=timbre,
            last=self.layout.nothing(b, device),
            pointer=zeros,
            groups=zeros.clone(),
            stalled=zeros.clone(),
            recent=torch.full((b, 16), -1, device=device),
        )
        if self.prefix is not None:
            text = self.prefix(encoded) + self.timbre(timbre)[:, None]
            index = torch.arange(start, device=device).expand(b, -1)
            causal = torch.ones(b, start, start, dtype=torch.bool, device=device).tril()
            self.talker(text, index, state.cache.mask(causal), state.cache)
            state.cache.lengths = units.lengths.clone()
        return state

    @torch.inference_mode()
    def extend(self, state: DecodeState, units: TextUnits) -> None:
        """Late text: replace the units of ``state`` by longer ones that begin with the same units."""
        if self.prefix is not None:
            raise ValueError("The prefix layout reads its text once; late text needs the aligned layout.")
        state.units, state.encoded = units, self.units(units)

    @torch.inference_mode()
    def verify(self, state: DecodeState, draft: Draft) -> LMOutput:
        """One forward over the M nodes of ``draft``; hidden states ``[B, M, 1, D]``. Nothing is committed."""
        m = draft.tokens.shape[1]
        state.cache.grow(int(state.cache.lengths.max()) + m)
        pointer = self._pointers(state, draft)
        x = self.embed(draft.tokens, state.encoded, state.units, state.timbre, pointer)
        ancestors = ancestors_of(draft.parents)
        index = state.cache.lengths[:, None] + ancestors.sum(-1) - 1
        return self.talker(x, index, state.cache.mask(ancestors), state.cache)

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
