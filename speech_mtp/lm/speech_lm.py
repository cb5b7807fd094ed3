"""The speech language model: backbone states and text units in, groups of speech tokens out.

``SpeechLM`` holds the talker, its embeddings and its output layer. The backbone is not part of it: the units arrive
with the backbone's hidden states already joined (:mod:`speech_mtp.lm.units`), so a talker can be trained from
stored states and shipped without the LLM. The model knows nothing of sampling or of sound.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from speech_mtp import plugins
from speech_mtp.layouts.aligned import Aligned
from speech_mtp.layouts.base import Layout
from speech_mtp.lm.cache import KVCache
from speech_mtp.lm.embeddings import EncodedUnits, GroupFusion, UnitEncoder, Window
from speech_mtp.lm.fused_depth import FusedDepth
from speech_mtp.lm.group_lm import GroupLM, GroupLMConfig, SpeechPlace, SpeechRows, behind_text
from speech_mtp.lm.outputs import build_output
from speech_mtp.lm.talker import Talker
from speech_mtp.nn.fused import FusedLayers
from speech_mtp.nn.packed import pack_linears
from speech_mtp.nn.row_values import put
from speech_mtp.nn.transformer import causal_mask
from speech_mtp.types import Kind, LMOutput, Positions, TextUnits


@dataclass(frozen=True)
class SpeechLMConfig(GroupLMConfig):
    """Everything that fixes the shapes of a speech LM. ``layout`` is a plug-in specification without sizes."""

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
    blank_states: float = 0.0


class SpeechLM(GroupLM):
    """Talker, embeddings and output layer of one layout."""

    def __init__(self, config: SpeechLMConfig) -> None:
        super().__init__()
        self.config: SpeechLMConfig = config
        c = config
        self.layout: Layout = plugins.build(
            "layouts", dict(c.layout), codebook_sizes=c.codebook_sizes, frames_per_group=c.frames_per_group
        )
        self._check_ahead()
        sizes = self.layout.channel_sizes
        self.fusion = GroupFusion(sizes, c.dim, c.fusion)
        self.units = UnitEncoder(c.num_phonemes, c.backbone_dim, c.unit_dim, blank=c.blank_states)
        self.window = Window(c.unit_dim, c.dim, c.past, c.ahead) if self.layout.points else None
        self.prefix = None if self.layout.points else nn.Linear(c.unit_dim, c.dim)
        self.timbre = nn.Linear(c.voice_dim, c.dim)
        self.talker = Talker(c.dim, c.num_layers, c.heads, c.hidden, c.dropout)
        self.output = build_output(c.output, c.dim, sizes)
        self._fused: FusedLayers | None = None

    def prepare(self) -> Self:
        """Make ready to decode fast on a CPU: weights of talker and output layer in blocks of 8 bits
        (:mod:`speech_mtp.nn.blocks`), all layers of the talker in one call. Where the kernels cannot be had nothing
        changes. It speaks the same whatever else is spoken beside it, and cannot be trained further."""
        if self.device.type == "cpu":
            self._fused = self.talker.in_blocks("q8")
        if self._fused is not None:
            for part in (self.output, self.fusion, self.window, self.timbre):
                if part is not None:  # all of them: what is rounded to 8 bits must not differ in its last bit before
                    pack_linears(part, "q8")
            self.draws_groups = FusedDepth.of(self.output)
        return self

    def _check_ahead(self) -> None:
        """What a position looks at must be there before it is spoken, or late text would be spoken otherwise."""
        if not isinstance(self.layout, Aligned):
            return
        known, window, reach = self.layout.ahead, self.config.ahead, self.layout.max_advance - 1
        if known < max(window, reach):
            raise ValueError(
                f"The layout goes on with {known} units of text ahead, but a position looks {window} ahead and may "
                f"move by {reach + 1}; set the layout's ahead to {max(window, reach)} or more."
            )

    @classmethod
    def from_config(cls, entries: dict[str, object]) -> SpeechLM:
        """From the ``to_config`` of another one (JSON lists become tuples)."""
        return cls(SpeechLMConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in entries.items()}))  # type: ignore[arg-type]

    # -- training ---------------------------------------------------------------------------------------------
    def embed(
        self, tokens: Tensor, encoded: Tensor, num_units: Tensor, timbre: Tensor, pointer: Tensor | None
    ) -> Tensor:
        """Speech positions ``tokens [B, T, C]`` -> ``[B, T, D]``."""
        x = self.fusion(tokens) + self.timbre(timbre)[:, None]
        if self.window is not None:
            assert pointer is not None, "the aligned layout needs pointers"
            x = x + self.window(encoded, num_units, pointer)
        return x

    def forward(
        self, positions: Positions, units: TextUnits, timbre: Tensor, taps: tuple[int, ...] = (-1,)
    ) -> LMOutput:
        # Prepared, as it decodes: text that is read whole differs in its last bit, which rounding to 8 bits can show.
        encoded = self.units(units) if self._fused is None else self.units.in_blocks(units)
        x = speech = self.embed(positions.tokens, encoded, units.lengths, timbre, positions.pointer)
        valid = positions.kind != Kind.PAD
        index = positions.index
        if self.prefix is not None:
            text = self.prefix(encoded) + self.timbre(timbre)[:, None]
            x, index, valid = behind_text(text, units.lengths, x, index, valid)
        out = self._teacher_forced(x, index, causal_mask(valid), taps)
        start = x.shape[1] - speech.shape[1]
        return LMOutput(out.hidden[:, start:], final=out.top[:, start:], inputs=speech)

    def _teacher_forced(self, x: Tensor, index: Tensor, mask: Tensor, taps: tuple[int, ...]) -> LMOutput:
        """As it decodes: a prepared model by other weights than those it was trained with."""
        if self._fused is None:
            return self.trunk_states(x, index, mask, taps=taps)
        return self.node_states(x, index, mask[:, 0], self.talker.open(x.shape[0], x.shape[1], x.device), taps)

    def trunk_states(
        self, x: Tensor, index: Tensor, mask: Tensor, cache: KVCache | None = None, taps: tuple[int, ...] = (-1,)
    ) -> LMOutput:
        out: LMOutput = self.talker(x, index, mask, cache, taps)
        return out

    def node_states(
        self, x: Tensor, index: Tensor, ancestors: Tensor, cache: KVCache, taps: tuple[int, ...] = (-1,)
    ) -> LMOutput:
        if self._fused is None:
            return super().node_states(x, index, ancestors, cache, taps)
        hidden, final = self._fused(x, index, ancestors, cache, taps)
        return LMOutput(hidden, final=final)

    # -- decoding ---------------------------------------------------------------------------------------------
    @torch.inference_mode()
    def prefill(self, units: TextUnits, timbre: Tensor, size: int = 64) -> SpeechRows:
        encoded = self.units.in_blocks(units)
        start = 0 if self.prefix is None else int(units.lengths.max())
        cache = self.talker.open(len(units.lengths), start + size, timbre.device)
        rows = self.begin(cache, units, encoded, timbre)
        if self.prefix is not None:
            self.read_text(rows, self.prefix(encoded) + self.timbre(timbre)[:, None])
        return rows

    @torch.inference_mode()
    def extend(self, rows: SpeechRows, b: int, units: TextUnits) -> None:
        if self.prefix is not None:
            raise ValueError("The prefix layout reads its text once; late text needs the aligned layout.")
        known = EncodedUnits(self.units, rows.encoded[b, : int(rows.num_units[b])])
        rows.encoded = put(rows.encoded, b, known.extend(units)[None])
        rows.num_units = put(rows.num_units, b, units.lengths)
        rows.complete = put(rows.complete, b, units.complete)

    def vectors(self, rows: SpeechRows, tokens: Tensor, place: SpeechPlace) -> Tensor:
        return self.embed(tokens, rows.encoded, rows.num_units, rows.timbre, place.pointer)

    def binding(self) -> dict[str, Any]:
        return {"embed": None, "unembed": None, "weight": None, "norm": self.talker.norm}

    def shape(self) -> dict[str, Any]:
        c = self.config
        return {
            "dim": c.dim,
            "vocab_size": self.layout.channel_sizes[1],
            "num_layers": c.num_layers,
            "num_heads": c.heads,
            "num_kv_heads": c.heads,
            "head_dim": c.dim // c.heads,
            "intermediate_size": c.hidden,
        }
