"""Waveform <-> codes: the interface of every codec.

Streaming is the primitive: ``decode`` opens a state, pushes every frame and flushes, so offline audio
and streamed audio are the same lines. A codec knows nothing of text, positions or language models.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor, nn

from speech_mtp.types import CodecSpec, Codes

PART_S = 30.0
"""Seconds of a long recording that are encoded at a time."""


class Codec(nn.Module, ABC):
    """One codec. Subclasses set ``spec`` and implement ``encode``, ``open``, ``push`` and ``flush``.

    A state holds a fixed number of *slots* (rows). Rows join with ``reset``, advance by different
    numbers of frames, and leave with ``flush``; what one row does never changes another row.
    """

    spec: CodecSpec

    @property
    def reach_frames(self) -> int | None:
        """Frames on each side of a frame that its codes depend on; None where they may depend on all."""
        return None

    @property
    def delay_s(self) -> float:
        """Seconds by which streamed sound lags behind the frames that were pushed."""
        return 0.0

    @abstractmethod
    def encode(self, wave: Tensor, lengths: Tensor | None = None, timbre: Tensor | None = None) -> Codes:
        """``wave [B, 1, S]`` float in [-1, 1] at ``spec.sample_rate`` -> codes.

        ``lengths [B]`` in samples (default: all S). A row gives ceil(length / samples_per_frame) frames.
        ``timbre [B, E]`` is that of the speakers, where it is known from elsewhere; codecs without timbre take none.
        """

    @abstractmethod
    def open(self, slots: int) -> Any:
        """A fresh decoding state for ``slots`` rows, all of them free (``reset`` starts one)."""

    @abstractmethod
    def reset(self, state: Any, rows: Tensor, timbre: Tensor | None) -> None:
        """Start new utterances in ``rows [R]`` with ``timbre [R, E]`` (None for codecs without timbre)."""

    @abstractmethod
    def push(self, state: Any, frames: Tensor, lengths: Tensor) -> list[Tensor]:
        """Decode ``frames [slots, K, F]``, of which the first ``lengths [slots]`` count (0: row is idle).

        Returns one ``[S_b]`` waveform per slot: the samples that have become final. Their number may
        lag behind ``lengths * samples_per_frame`` by the codec's fixed look-ahead.
        """

    @abstractmethod
    def flush(self, state: Any, rows: Tensor) -> list[Tensor]:
        """End the utterances of ``rows [R]``: their last samples, so that F frames gave F * samples_per_frame."""

    def phoneme_log_probs(self, codes: Codes) -> Tensor:
        """``[B, F, spec.num_phonemes]``: log probabilities of the phonemes of ``speech_mtp.text.phonemes.SYMBOLS`` in
        every frame (0 is CTC's blank). Raises ``ValueError`` for a codec without a phoneme head."""
        raise ValueError(f"A {type(self).__name__} codec has no phoneme head, so it tells no phonemes; name another.")

    @torch.inference_mode()
    def encode_part(self, wave: Tensor, first: int, end: int, timbre: Tensor | None = None) -> Tensor:
        """The frames ``[1, K, end - first]`` of ``wave [S]`` from ``first`` to ``end``, as if all of it were encoded.

        It is heard for ``reach_frames`` further on both sides, as far as it goes, or whole where there is no reach.
        ``timbre [E]`` as for :meth:`encode`.
        """
        size, reach = self.spec.samples_per_frame, self.reach_frames
        before = first if reach is None else min(reach, first)
        part = (
            wave[(first - before) * size :] if reach is None else wave[(first - before) * size : (end + reach) * size]
        )
        codes = self.encode(part[None, None], timbre=None if timbre is None else timbre[None])
        return codes.frames[:, :, before : before + end - first]

    @torch.inference_mode()
    def phonemes_heard(self, wave: Tensor) -> Tensor:
        """:meth:`phoneme_log_probs` of ``wave [S]``, ``[F, V]``, a row for each frame. A long one is encoded in parts,
        if there is a reach, so memory grows with what is returned only."""
        count = -(-len(wave) // self.spec.samples_per_frame)
        size = count if self.reach_frames is None else round(PART_S * self.spec.frame_rate_hz)
        parts = [self.encode_part(wave, first, min(first + size, count)) for first in range(0, count, max(1, size))]
        frames = torch.cat(parts, 2)
        return self.phoneme_log_probs(Codes(frames, torch.tensor([count])))[0]

    def to_config(self) -> dict[str, object]:
        """Settings, plain JSON, from which :meth:`from_config` makes this codec with other weights. Raises
        ``ValueError`` for a codec that cannot be saved."""
        raise ValueError(f"A {type(self).__name__} codec is loaded from its own source and cannot be saved here.")

    @classmethod
    def from_config(cls, entries: dict[str, Any]) -> Self:
        """From the :meth:`to_config` of another one (JSON makes lists of tuples)."""
        return cls(**entries)

    @torch.inference_mode()
    def decode(self, codes: Codes) -> Tensor:
        """Codes -> ``[B, 1, S]``, rows padded with zeros past ``lengths * samples_per_frame``."""
        slots = codes.frames.shape[0]
        state = self.open(slots)
        rows = torch.arange(slots, device=codes.frames.device)
        self.reset(state, rows, codes.timbre)
        pushed = self.push(state, codes.frames, codes.lengths)
        waves = [torch.cat(pair) for pair in zip(pushed, self.flush(state, rows), strict=True)]
        return nn.utils.rnn.pad_sequence(waves, batch_first=True).unsqueeze(1)
