"""What every language model of groups has in common: a layout, an output layer, and rows that advance by groups.

The decoding loop, the objectives and the training task know a model as :class:`GroupLM` only; whether a talker or
the backbone itself stands behind it is its own affair. A group LM knows nothing of sampling or of sound.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from speech_mtp.layouts.base import Layout
from speech_mtp.lm.cache import KVCache
from speech_mtp.lm.fingerprint import digest_of
from speech_mtp.lm.fused_depth import FusedDepth
from speech_mtp.lm.output import OutputLayer
from speech_mtp.lm.rows import Place, Rows, Trunk, side_by_side
from speech_mtp.types import MOST_REPEATS, Draft, LMOutput, Positions, RowSampling, Sampling, TextUnits


@dataclass(frozen=True)
class GroupLMConfig:
    """What a model must know of the codec whose tokens it predicts.

    A codec without timbre (``timbre_dim`` 0) does not tell voices apart. Its speech LM therefore learns a vector for
    each of the ``voices`` of its corpus: wherever a timbre is asked for, the one-hot of a voice among them stands in.
    """

    codebook_sizes: tuple[int, ...]
    frame_rate_hz: float
    timbre_dim: int
    voices: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def voice_dim(self) -> int:
        """Size of the vector that says who speaks."""
        return self.timbre_dim or len(self.voices)


@dataclass
class SpeechPlace(Place):
    """``pointer`` is the text unit, ``stalled`` the groups since it moved, ``recent [..., W]`` the newest content codes
    (-1: nothing yet), ``run`` how many of them in a row were the newest one; ``control`` is the newest control token
    (-1: none)."""

    pointer: Tensor
    stalled: Tensor
    recent: Tensor
    run: Tensor
    control: Tensor

    @classmethod
    def start(cls, rows: int, device: torch.device) -> SpeechPlace:
        """Before the first group."""
        zeros = torch.zeros(rows, dtype=torch.long, device=device)
        return cls(zeros, zeros, zeros, torch.full((rows, MOST_REPEATS), -1, device=device), zeros, zeros - 1)


@dataclass
class SpeechRows(Rows):
    """Rows of speech: ``encoded [R, U, E]`` is what the model made of the ``num_units [R]`` text units that are there,
    ``complete [R]`` is False while more may come, ``characters [R]`` their length (-1: unknown), ``timbre [R, E]``."""

    encoded: Tensor
    num_units: Tensor
    complete: Tensor
    characters: Tensor
    timbre: Tensor


class GroupLM(nn.Module, Trunk):
    """Text units in, groups of speech tokens out. Subclasses set the three attributes and fill in the abstract part."""

    config: GroupLMConfig
    layout: Layout
    output: OutputLayer
    reads_states = True
    """Whether the hidden states of text units are used; False for the backbone itself."""
    draws_groups: FusedDepth | None = None
    """What draws whole groups at once in place of ``output``, in a prepared model."""

    @property
    def loss_names(self) -> tuple[str, ...]:
        """Of every channel the loss term that it counts in: ``control``, then the streams, frame by frame."""
        kinds = map(self.kind_of, range(1, self.layout.num_channels))
        return ("control", *(f"stream{kind - 1}" for kind in kinds))

    def kind_of(self, channel: int) -> int:
        """0 for the control channel, else 1 + its stream."""
        return 0 if channel == 0 else 1 + (channel - 1) % len(self.config.codebook_sizes)

    def to_config(self) -> dict[str, object]:
        return asdict(self.config)

    @abstractmethod
    def forward(
        self, positions: Positions, units: TextUnits, timbre: Tensor, taps: tuple[int, ...] = (-1,)
    ) -> LMOutput:
        """Teacher-forced hidden states of the speech positions, ``[B, T, taps, D]``, with their input vectors.
        ``timbre [B, E]``, of size ``config.voice_dim``."""

    @abstractmethod
    def prefill(self, units: TextUnits, timbre: Tensor, size: int = 64) -> SpeechRows:
        """Start decoding ``B`` rows of text; room for ``size`` groups at first (it grows)."""

    @abstractmethod
    def extend(self, rows: SpeechRows, b: int, units: TextUnits) -> None:
        """Late text: replace the units of row ``b`` by longer ones (a batch of one) that begin with the same units."""

    @abstractmethod
    def vectors(self, rows: SpeechRows, tokens: Tensor, place: SpeechPlace) -> Tensor:
        """Speech positions ``tokens [B, M, C]`` that stand at ``place`` -> ``[B, M, D]``."""

    @abstractmethod
    def trunk_states(
        self, x: Tensor, index: Tensor, mask: Tensor, cache: KVCache | None = None, taps: tuple[int, ...] = (-1,)
    ) -> LMOutput:
        """The transformer: ``x [B, T, D]``, ``index [B, T]``, ``mask [B, 1, T, S]`` bool (True: may look)."""

    def node_states(
        self, x: Tensor, index: Tensor, ancestors: Tensor, cache: KVCache, taps: tuple[int, ...] = (-1,)
    ) -> LMOutput:
        """The transformer over nodes ``x [B, M, D]`` behind what is in ``cache``, each seeing that and its ``ancestors
        [B, M, M]``."""
        return self.trunk_states(x, index, cache.mask(ancestors), cache, taps)

    # -- heads ------------------------------------------------------------------------------------------------
    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def vocab_size(self) -> int:
        """Of the first code channel, as a head's :class:`~speech_mtp.heads.base.TrunkShape` has it."""
        return self.layout.channel_sizes[1]

    @property
    def fingerprint(self) -> str:
        """What names the weights, however they are stored: a head trained on one model refuses another."""
        return digest_of(self)

    # -- decoding ---------------------------------------------------------------------------------------------
    @property
    def state_dtype(self) -> torch.dtype:
        """Of the states that heads read."""
        return torch.float32

    def begin(self, cache: KVCache, units: TextUnits, encoded: Tensor, timbre: Tensor) -> SpeechRows:
        """The rows before their first group."""
        b, device = len(units.lengths), timbre.device
        unknown = torch.full_like(units.lengths, -1)
        return SpeechRows(
            cache=cache,
            last=self.layout.nothing(b, device),
            place=SpeechPlace.start(b, device),
            sampling=RowSampling([Sampling()] * b, device),
            head=None,
            version=0,
            encoded=encoded,
            num_units=units.lengths,
            complete=units.complete,
            characters=unknown if units.characters is None else units.characters,
            timbre=timbre,
        )

    def read_text(self, rows: SpeechRows, text: Tensor) -> None:
        """Put text ``[B, U, D]`` in front of the speech into the empty cache, each row as long as its units."""
        b, width = text.shape[:2]
        index = torch.arange(width, device=text.device).expand(b, -1)
        causal = torch.ones(b, width, width, dtype=torch.bool, device=text.device).tril()
        self.node_states(text, index, causal, rows.cache)
        rows.cache.advance(rows.num_units, width)

    @torch.inference_mode()
    def verify(self, rows: SpeechRows, draft: Draft, taps: tuple[int, ...] = (-1,)) -> LMOutput:
        self.placed(rows, draft)
        rows.cache.make_room(draft.tokens.shape[1])
        x = self.vectors(rows, draft.tokens, draft.place)
        index = rows.cache.lengths[:, None] + draft.depths
        return self.node_states(x, index, draft.ancestors, rows.cache, taps)

    def at_nodes(self, rows: SpeechRows, draft: Draft) -> SpeechPlace:
        places = [rows.place]
        for i in range(1, draft.tokens.shape[1]):
            above = side_by_side(places).at(draft.parents[:, i : i + 1].clamp(min=0)).only(0)
            places.append(self.advanced(rows, above, draft.tokens[:, i]))
        found: SpeechPlace = side_by_side(places)
        return found

    def advanced(self, rows: SpeechRows, place: SpeechPlace, tokens: Tensor) -> SpeechPlace:
        pointer = self.layout.move(place.pointer, tokens[:, 0])
        recent, run = place.recent, place.run
        for code in tokens[:, 1 :: len(self.config.codebook_sizes)].unbind(1):
            run = torch.where(code == recent[:, -1], run + 1, 1)
            recent = torch.cat([recent[:, 1:], code[:, None]], 1)
        stalled = torch.where(pointer == place.pointer, place.stalled + 1, 0)
        return SpeechPlace(place.position + 1, pointer, stalled, recent, run, tokens[:, 0])


def behind_text(text: Tensor, lengths: Tensor, x: Tensor, index: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
    """Speech ``x [B, T, D]`` behind text ``[B, U, D]`` of ``lengths [B]``: joint x, rotary index, validity [B, U + T].

    A row's speech goes on counting where its own text ends, as it does in decoding.
    """
    at = torch.arange(text.shape[1], device=x.device).expand(len(x), -1)
    joined = torch.cat([text, x], 1)
    return joined, torch.cat([at, lengths[:, None] + index], 1), torch.cat([at < lengths[:, None], valid], 1)
