"""A recording said again in another voice, while it comes: its content and prosody, the other voice's timbre."""

from __future__ import annotations

import torch
from torch import Tensor

from speech_mtp.codecs.base import Codec
from speech_mtp.voices.reference import MOST_S, UnusableRecordingError, timbre_of

BLOCK_S = 0.32
"""Seconds that are converted at a time."""


class Converter:
    """Turns one recording into the voice ``target [E]``, ``block_s`` seconds at a time.

    A code depends on ``codec.reach_frames`` frames on both sides of it, so a block is encoded together with so many
    around it and only its own codes are kept: however the recording comes in pieces, its codes are those of the whole.
    Prosody is heard relative to who speaks, ``source [E]``; if it is not given, it is the voice of the first ten
    seconds, which are waited for.

    Raises ValueError for a codec that keeps no timbre apart.
    """

    def __init__(self, codec: Codec, target: Tensor, source: Tensor | None = None, block_s: float = BLOCK_S) -> None:
        if not codec.spec.timbre_dim or codec.reach_frames is None:
            raise ValueError("This codec keeps no timbre apart, so it converts no voices; choose a decoupled one.")
        self.codec, self._target, self._source = codec, target, source
        self._reach = codec.reach_frames
        self._block = max(1, round(block_s * codec.spec.frame_rate_hz))
        self._row = torch.zeros(1, dtype=torch.long)
        self._state = codec.open(1)
        codec.reset(self._state, self._row, target[None])
        self._kept = torch.zeros(0)  # the recording from frame `_first` on
        self._first = self._done = 0  # `_done` frames are converted
        self._heard = self._said = 0  # samples of the recording, and of what was made of it

    @torch.inference_mode()
    def push(self, wave: Tensor) -> Tensor:
        """More of the recording, ``[S]`` at the codec's rate -> what has become final, ``[S']``."""
        self._kept = torch.cat([self._kept, wave])
        self._heard += len(wave)
        if self._source is None and self._heard < MOST_S * self.codec.spec.sample_rate:
            return torch.zeros(0)
        found = [torch.zeros(0)]
        while self._heard // self.codec.spec.samples_per_frame >= self._done + self._block + self._reach:
            found.append(self._convert(self._done + self._block))
        return self._tell(torch.cat(found))

    @torch.inference_mode()
    def close(self) -> Tensor:
        """The rest, ``[S']``; everything together is then as long as the recording."""
        frames = -(-self._heard // self.codec.spec.samples_per_frame)
        found = [torch.zeros(0)]
        while self._done < frames:
            found.append(self._convert(min(self._done + self._block, frames)))
        found += self.codec.flush(self._state, self._row)
        return self._tell(torch.cat(found)[: self._heard - self._said])

    def _tell(self, wave: Tensor) -> Tensor:
        self._said += len(wave)
        return wave

    def _convert(self, end: int) -> Tensor:
        """What the frames that come next, up to ``end``, sound like."""
        size, first = self.codec.spec.samples_per_frame, self._first
        window = self._kept[: (end + self._reach - first) * size]
        codes = self.codec.encode(window[None, None], timbre=self._speaker()[None])
        block = codes.frames[:, :, self._done - first : end - first]
        self._done, self._first = end, max(0, end - self._reach)
        self._kept = self._kept[(self._first - first) * size :]
        return self.codec.push(self._state, block, torch.tensor([block.shape[2]]))[0]

    def _speaker(self) -> Tensor:
        if self._source is None:
            rate = self.codec.spec.sample_rate
            try:
                self._source = timbre_of(self.codec, self._kept[: int(MOST_S * rate)], rate)
            except UnusableRecordingError:
                self._source = self._target  # nobody speaks
        return self._source
