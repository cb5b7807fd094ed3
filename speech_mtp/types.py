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

Nothing in this file computes: these are dataclasses of tensors with shape checks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum

import torch
from torch import Tensor


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
    """

    sample_rate: int
    frame_rate_hz: float
    streams: dict[str, slice]
    codebook_sizes: tuple[int, ...]
    timbre_dim: int = 0

    def __post_init__(self) -> None:
        filled = [k for s in self.streams.values() for k in range(s.start, s.stop)]
        if filled != list(range(len(self.codebook_sizes))):
            raise ValueError(f"streams {self.streams} do not cover the {len(self.codebook_sizes)} codebooks in order.")

    @property
    def num_streams(self) -> int:
        return len(self.codebook_sizes)

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


@dataclass
class LMOutput:
    """States of a trunk: ``hidden [B, T, taps, D]``, and ``final [B, T, D]``, the top layer (None: the last tap).

    In training, ``wanted [B, T]`` bool says after which positions predictions are asked for (None: after all).
    """

    hidden: Tensor
    final: Tensor | None = field(default=None, kw_only=True)
    wanted: Tensor | None = field(default=None, kw_only=True)

    @property
    def top(self) -> Tensor:
        """``[B, T, D]``: the states that output layers read."""
        return self.hidden[:, :, -1] if self.final is None else self.final


@dataclass
class Draft:
    """A tree of M guessed positions per row; node 0 is the committed position not yet in the cache.

    ``tokens [B, M, C]``, ``parents [B, M]`` (-1 for node 0, otherwise an earlier node; -1 also for nodes that only fill
    a row up to M, which are never kept), and ``q``: per channel the law the node was really drawn from, or None for a
    deterministic draft.
    """

    tokens: Tensor
    parents: Tensor
    q: list[Tensor] | None = None


@dataclass
class Verdict:
    """What a rule kept of a draft, and the one sure position that follows it.

    ``path [B, M]`` indexes the kept nodes in order (-1 past ``length [B]``), ``next [B, C]`` is the
    bonus position, sampled from the trunk's own law after the last kept node.
    """

    path: Tensor
    length: Tensor
    next: Tensor


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 are off.

    ``repeat_window`` and ``repeat_penalty`` form the repetition guard of speech codes: a content code
    that filled the whole window has its logit lowered by the penalty (nats). ``repetition_penalty`` is that of text
    (Keskar et al. 2019): logits of tokens seen before are divided by it where positive, multiplied where negative.
    ``seed`` is per row.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    repeat_window: int = 0
    repeat_penalty: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < 100:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (greedy) or a positive number.")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; use 0 for no limit, or a positive count.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must lie in (0, 1].")
        if self.repetition_penalty <= 0:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; use 1 for none, or more than 1.")


@dataclass
class WordTime:
    """One spoken word and where it lies in the audio."""

    word: str
    start_s: float
    end_s: float


@dataclass
class Finish:
    """Why a row ended: ``stop`` (by itself), ``length`` or ``runaway`` (guards), ``cancelled``."""

    reason: str
    detail: str = ""
    extra: dict[str, float] = field(default_factory=dict)
