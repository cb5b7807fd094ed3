"""The values that travel between the layers of the house, and the legend of its axes.

Axes, used in every shape comment of the package::

    B    rows of a batch                  T    positions of a language model
    C    channels of one position         M    nodes of a draft
    D    hidden size                      V_c  vocabulary of channel c
    K    streams of one codec frame       F    codec frames
    S    audio samples                    E    size of a timbre vector
    U    text units (phonemes)            L    tokens of the backbone

The codec side of the house is ``[B, K, F]``, the language-model side ``[B, T, C]``; only
``speech_mtp.layouts`` converts between the two. Text has one channel; speech has one *control*
channel followed by ``frames_per_group * K`` code channels, frame by frame.

These are dataclasses of tensors with shape checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from speech_mtp.nn.kv_cache import ancestors_of

MOST_REPEATS = 16
"""Content codes that a row of speech remembers, and so the longest repeat window."""


class Status(IntEnum):
    """Where a row stands after a position: whether another may follow, and if not, why."""

    GOING = 0
    WAITING = 1
    STOP = 2
    LENGTH = 3
    RUNAWAY = 4


class Kind(IntEnum):
    """What a position holds: selects its embedding, output layer, head and loss."""

    PAD = 0
    TEXT = 1
    SPEECH = 2
    REGISTER = 3


@dataclass(frozen=True)
class CodecSpec:
    """What a codec promises to the layers above it.

    ``streams`` maps a stream's name to the slice of the K axis that it fills, in the order of the K
    axis; ``codebook_sizes`` has one entry per K. ``timbre_dim`` is 0 for a codec without timbre.
    ``loss_weights``, one per K, weigh the losses of the streams where a talker is trained on the codes (empty: 1 each).
    ``num_phonemes`` is how many symbols the codec's phoneme head tells apart, 0 without one.
    """

    sample_rate: int
    frame_rate_hz: float
    streams: dict[str, slice]
    codebook_sizes: tuple[int, ...]
    timbre_dim: int = 0
    loss_weights: tuple[float, ...] = ()
    num_phonemes: int = 0

    def __post_init__(self) -> None:
        if not self.loss_weights:
            object.__setattr__(self, "loss_weights", (1.0,) * self.num_streams)
        if len(self.loss_weights) != self.num_streams:
            raise ValueError(f"There are {len(self.loss_weights)} loss weights for {self.num_streams} codebooks.")
        filled = [k for s in self.streams.values() for k in range(s.start, s.stop)]
        if filled != list(range(len(self.codebook_sizes))):
            raise ValueError(f"streams {self.streams} do not cover the {len(self.codebook_sizes)} codebooks in order.")

    @property
    def num_streams(self) -> int:
        return len(self.codebook_sizes)

    @property
    def codebook_names(self) -> list[str]:
        """One for each codebook: its stream's, with its number in it where the stream has several."""
        return [
            name if part.stop - part.start == 1 else f"{name}{k - part.start}"
            for name, part in self.streams.items()
            for k in range(part.start, part.stop)
        ]

    @property
    def samples_per_frame(self) -> int:
        samples = self.sample_rate / self.frame_rate_hz
        if samples != int(samples):
            raise ValueError(f"{self.sample_rate} Hz is not a multiple of {self.frame_rate_hz} frames per second.")
        return int(samples)


@dataclass
class Codes:
    """Discrete frames of a batch of utterances, with their timbre.

    ``frames [B, K, F]`` int64, ``lengths [B]`` in frames, ``timbre [B, E]`` float or None.
    Frames at or past a row's length are 0 and mean nothing.
    """

    frames: Tensor
    lengths: Tensor
    timbre: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.frames.ndim == 3, f"frames must be [B, K, F], got {tuple(self.frames.shape)}"
        assert self.lengths.shape == self.frames.shape[:1], f"lengths {tuple(self.lengths.shape)}"

    def row(self, b: int) -> Codes:
        """Row ``b`` alone, cut to its length."""
        n = int(self.lengths[b])
        timbre = None if self.timbre is None else self.timbre[b : b + 1]
        return Codes(self.frames[b : b + 1, :, :n], self.lengths[b : b + 1], timbre)


@dataclass
class TextUnits:
    """The text side of speech: phonemes, each joined with the backbone token that it belongs to (or tokens alone).

    ``phoneme, stress, word_start, token [B, U]`` int64 (``token`` indexes the L axis of ``hidden``),
    ``lengths [B]``, ``hidden [B, L, D]`` the backbone's states. ``complete [B]`` is False while more
    text may still arrive for a row (streaming text). ``characters [B]`` is how long the text is, where the number of
    units does not tell how much there is to speak; None for phonemes.
    """

    phoneme: Tensor
    stress: Tensor
    word_start: Tensor
    token: Tensor
    lengths: Tensor
    hidden: Tensor
    complete: Tensor
    characters: Tensor | None = None

    def to(self, device: torch.device | str) -> TextUnits:
        return replace(self, **{k: v.to(device) for k, v in self.__dict__.items() if v is not None})


@dataclass
class Positions:
    """What a trunk reads: made by layouts, the same value in training, prefill and drafting.

    ``tokens [B, T, C]`` are the tokens *fed* at each position (for speech, the previous group),
    ``kind [B, T]`` of :class:`Kind`, ``index [B, T]`` the rotary position, ``segment [B, T]``: neither
    attention nor labels cross a segment. ``pointer [B, T]`` is the text unit being spoken (layout
    ``aligned``) and ``labels [B, T, C]`` the tokens to predict, with -100 where there is no loss.
    """

    tokens: Tensor
    kind: Tensor
    index: Tensor
    segment: Tensor
    pointer: Tensor | None = None
    labels: Tensor | None = None

    def to(self, device: torch.device | str) -> Positions:
        """The same on ``device``."""
        return replace(self, **{k: v.to(device, non_blocking=True) for k, v in vars(self).items() if v is not None})


@dataclass
class LMOutput:
    """States of a trunk: ``hidden [B, T, taps, D]``, and ``final [B, T, D]``, the top layer (None: the last tap).

    In training, ``wanted [B, T]`` bool says after which positions predictions are asked for (None: after all),
    ``inputs [B, T, D]`` are the input vectors of these positions (None: whoever asked has them), and ``segment [B, T]``
    tells the documents of packed rows apart (None: a row is one): what attends looks at its own alone.
    """

    hidden: Tensor
    final: Tensor | None = field(default=None, kw_only=True)
    inputs: Tensor | None = field(default=None, kw_only=True)
    wanted: Tensor | None = field(default=None, kw_only=True)
    segment: Tensor | None = field(default=None, kw_only=True)

    @property
    def top(self) -> Tensor:
        """``[B, T, D]``: the states that output layers read."""
        return self.hidden[:, :, -1] if self.final is None else self.final


@dataclass
class Draft:
    """A tree of M guessed positions per row; node 0 is the committed position not yet in the cache.

    ``tokens [B, M, C]``, ``parents [B, M]`` (-1 for node 0, otherwise an earlier node; -1 also for nodes that only fill
    a row up to M, which are never kept). ``q [B, M - 1, V]``: the draft distribution that every node was really drawn
    from; None for guesses. No path has more than ``depth`` nodes after node 0 (None: M - 1). ``place`` is what the
    language model knows of every node besides its token (fields ``[B, M, ...]``), None until it has been asked.
    """

    tokens: Tensor
    parents: Tensor
    q: Tensor | None = None
    depth: int | None = None
    place: Any = None

    @property
    def most(self) -> int:
        """An upper bound of a path's nodes after node 0."""
        m = self.parents.shape[1] - 1
        return m if self.depth is None else min(self.depth, m)

    @cached_property
    def ancestors(self) -> Tensor:
        """``[B, M, M]`` bool: node i sees itself and every node on its way to the root."""
        return ancestors_of(self.parents)

    @cached_property
    def depths(self) -> Tensor:
        """``[B, M]``: how many nodes lie between node 0 and each node, itself included; 0 for node 0."""
        return self.ancestors.sum(-1) - 1


@dataclass
class Verdict:
    """What a rule kept of a draft, and the one sure position that follows it.

    ``path [B, M]`` indexes the kept nodes in order (-1 past ``length [B]``), ``next [B, C]`` is what the trunk itself
    draws after the last kept node. ``tried, kept [B]`` count depths: a depth was tried if there was a draft of it after
    kept ones, and kept if one was right (``next`` may be that draft, where a row ends with it).
    """

    path: Tensor
    length: Tensor
    next: Tensor
    tried: Tensor
    kept: Tensor

    @property
    def stop(self) -> Tensor:
        """``[B]``: the last kept node."""
        return self.path.gather(1, (self.length - 1)[:, None])[:, 0]


@dataclass
class Emitted:
    """New positions, ``lengths [B]`` per row: ``tokens [B, T, C]`` and their ``place`` (fields ``[B, T, ...]``)."""

    tokens: Tensor
    place: Any
    lengths: Tensor


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 are off.

    ``repeat_window`` and ``repeat_penalty`` form the repetition guard of speech codes: a content code
    that filled the whole window has its logit lowered by the penalty (nats). ``repetition_penalty`` is that of text
    (Keskar et al. 2019): logits of tokens seen before are divided by it where positive, multiplied where negative.
    ``seed`` is per row. ``stream_temperatures`` are factors of the temperature of speech: for the control channel, then
    for each codebook of a frame (none: 1 for all); what has factor 0 is greedy.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    repeat_window: int = 0
    repeat_penalty: float = 0.0
    repetition_penalty: float = 1.0
    stream_temperatures: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "stream_temperatures", tuple(self.stream_temperatures))  # JSON has lists
        if not all(0 <= factor < 100 for factor in self.stream_temperatures):
            raise ValueError(f"stream_temperatures are {self.stream_temperatures}; they must be 0 or positive factors.")
        if not 0 <= self.temperature < 100:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or a positive number.")
        if self.temperature * max(self.stream_temperatures, default=0) >= 100:
            raise ValueError(
                f"temperature {self.temperature} times a factor of {self.stream_temperatures} is 100 or more."
            )
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; use 0 for no limit, or a positive count.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must lie in (0, 1].")
        if self.repeat_window > MOST_REPEATS:
            raise ValueError(f"repeat_window is {self.repeat_window}; at most {MOST_REPEATS} codes are remembered.")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must be a number of 64 bits.")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; use 1 for none, or more than 1.")

    def check_codebooks(self, count: int) -> None:
        """Raises ``ValueError`` where there are factors, but not one for control and each of ``count`` codebooks."""
        if self.stream_temperatures and len(self.stream_temperatures) != 1 + count:
            raise ValueError(
                f"stream_temperatures has {len(self.stream_temperatures)} factors; give {1 + count}: one for the "
                "control channel and one for every codebook."
            )

    def of_kind(self, kind: int) -> Sampling:
        """The settings of the control channel (0) or of the codebook ``kind - 1``."""
        if not self.stream_temperatures:
            return self
        return replace(self, temperature=self.temperature * self.stream_temperatures[kind], stream_temperatures=())


class RowSampling:
    """The settings of every row, as tensors ``[R]``; one row's never touch another's.

    ``sampled``, ``filtered`` and ``penalised`` say whether any row draws at random, has a top-k or top-p, and has a
    repetition penalty: so that nobody pays for what nobody asked for; ``by_kind`` whether any has factors of its
    streams. ``most_top_k`` is the largest top-k.
    """

    def __init__(self, settings: Sequence[Sampling], device: torch.device | str = "cpu") -> None:
        self.settings, self.device = tuple(settings), torch.device(device)
        self.sampled = any(s.temperature > 0 for s in self.settings)
        self.filtered = any(s.temperature > 0 and (s.top_k or s.top_p < 1) for s in self.settings)
        self.penalised = any(s.repetition_penalty != 1 for s in self.settings)
        self.by_kind = any(s.stream_temperatures for s in self.settings)
        self._kinds: dict[int, RowSampling] = {}
        self.most_top_k = max((s.top_k for s in self.settings), default=0)
        self.most_repeat_window = max((s.repeat_window for s in self.settings), default=0)
        self.temperature = self._column([s.temperature for s in self.settings], torch.float32)
        self.top_k = self._column([s.top_k for s in self.settings], torch.long)
        self.top_p = self._column([s.top_p for s in self.settings], torch.float32)
        self.seed = self._column([s.seed for s in self.settings], torch.long)
        self.repeat_window = self._column([s.repeat_window for s in self.settings], torch.long)
        self.repeat_penalty = self._column([s.repeat_penalty for s in self.settings], torch.float32)
        self.repetition_penalty = self._column([s.repetition_penalty for s in self.settings], torch.float32)

    def _column(self, values: list[Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype).to(self.device)

    def of_kind(self, kind: int) -> RowSampling:
        """The settings of the control channel (0) or of the codebook ``kind - 1``."""
        if not self.by_kind:
            return self
        if kind not in self._kinds:
            self._kinds[kind] = RowSampling([s.of_kind(kind) for s in self.settings], self.device)
        return self._kinds[kind]

    def repeated(self, count: int) -> RowSampling:
        """Every row ``count`` times, one after the other."""
        if count == 1:
            return self
        found = object.__new__(RowSampling)
        for name, value in self.__dict__.items():
            setattr(found, name, value.repeat_interleave(count, 0) if isinstance(value, Tensor) else value)
        found.settings = tuple(s for s in self.settings for _ in range(count))
        found._kinds = {}
        return found

    # Rows that come and go (speech_mtp.nn.row_values).
    def select(self, rows: Tensor) -> RowSampling:
        return RowSampling([self.settings[b] for b in rows.tolist()], self.device)

    def put(self, row: int, other: RowSampling) -> RowSampling:
        settings = list(self.settings)
        settings[row] = other.settings[0]
        return RowSampling(settings, self.device)

    def widen(self, rows: int) -> RowSampling:
        spare = [Sampling(temperature=0)] * (rows - len(self.settings))
        return RowSampling([*self.settings, *spare], self.device)

    def clone(self) -> RowSampling:
        return self  # never changed in place


@dataclass
class WordTime:
    """One spoken word and where it lies in the audio."""

    word: str
    start_s: float
    end_s: float


@dataclass
class Finish:
    """Why a row ended: ``stop`` (by itself), ``length`` or ``runaway`` (guards), ``cancelled``, ``error`` (its text
    cannot be spoken)."""

    reason: str
    detail: str = ""
    extra: dict[str, float] = field(default_factory=dict)
