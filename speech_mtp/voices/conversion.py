"""A recording said again in another voice, while it comes: its content and prosody, the other voice's timbre."""

from __future__ import annotations

import torch
from torch import Tensor

from speech_mtp.codecs.base import Codec
from speech_mtp.voices.reference import LOOKED_AT_S, MOST_S, UnusableRecordingError, check_timbre, reference_of

BLOCK_S = 0.32
"""Seconds that are converted at a time."""


class Converter:
    """Turns one recording into the voice ``target [E]``, ``block_s`` seconds at a time.

    However the recording comes in pieces, its codes are those of the whole
    (:meth:`speech_mtp.codecs.base.Codec.encode_part`).

    Prosody is heard relative to who speaks, ``source [E]``, at the level ``gain`` times that of the recording; what is
    sounded has the recording's own level. If they are not given, they are those of the first ten seconds, which are
    waited for; where nobody speaks in them, of what comes then.

    Raises ValueError for a codec that keeps no timbre apart.
    """

    def __init__(
        self, codec: Codec, target: Tensor, source: Tensor | None = None, gain: float = 1.0, block_s: float = BLOCK_S
    ) -> None:
        check_timbre(codec)
        assert codec.reach_frames is not None, "a codec with timbre says how far its codes reach"
        self.codec, self._target, self._source, self._gain = codec, target, source, gain
        self._reach = codec.reach_frames
        self._block = max(1, round(block_s * codec.spec.frame_rate_hz))
        self._row = torch.zeros(1, dtype=torch.long)
        self._state = codec.open(1)
        codec.reset(self._state, self._row, target[None])
        self._kept = torch.zeros(0)  # the recording from frame `_first` on
        self._first = self._done = 0  # `_done` frames are converted
        self._heard = self._said = 0  # samples of the recording, and of what was made of it
        self._looked = 0  # samples of `_kept` in which nobody was found

    @torch.inference_mode()
    def push(self, wave: Tensor) -> Tensor:
        """More of the recording, ``[S]`` at the codec's rate -> what has become final, ``[S']``."""
        self._kept = torch.cat([self._kept, wave])
        self._heard += len(wave)
        if not self._look_for_speaker(closing=False):
            return torch.zeros(0)
        frames = self._heard // self.codec.spec.samples_per_frame - self._reach
        return self._tell(self._convert_up_to(frames, whole=True))

    @torch.inference_mode()
    def close(self) -> Tensor:
        """The rest, ``[S']``; everything together is then as long as the recording."""
        self._look_for_speaker(closing=True)
        rest = self._convert_up_to(-(-self._heard // self.codec.spec.samples_per_frame), whole=False)
        last = self.codec.flush(self._state, self._row)[0] / self._gain
        return self._tell(torch.cat([rest, last])[: self._heard - self._said])

    def _tell(self, wave: Tensor) -> Tensor:
        self._said += len(wave)
        return wave

    def _look_for_speaker(self, closing: bool) -> bool:
        """Whether the recording can be converted: it is known who speaks, or nobody does for a minute. It is looked
        for in ten seconds more at a time, so that pieces make no difference."""
        rate = self.codec.spec.sample_rate
        while self._source is None and (len(self._kept) - self._looked >= MOST_S * rate or closing):
            self._looked = min(self._looked + int(MOST_S * rate), len(self._kept))
            try:
                reference = reference_of(self._kept[: self._looked], rate, rate)
                self._source, self._gain = reference.timbre(self.codec), reference.gain
            except UnusableRecordingError:
                if self._looked >= LOOKED_AT_S * rate or (closing and self._looked == len(self._kept)):
                    return True
        return self._source is not None

    def _convert_up_to(self, frames: int, whole: bool) -> Tensor:
        """Convert up to ``frames``, in ``whole`` blocks only."""
        found = [torch.zeros(0)]
        while self._done + (self._block if whole else 1) <= frames:
            found.append(self._convert(min(self._done + self._block, frames)))
        self._looked = min(self._looked, len(self._kept))
        return torch.cat(found)

    def _convert(self, end: int) -> Tensor:
        """What the frames that come next, up to ``end``, sound like."""
        size, first = self.codec.spec.samples_per_frame, self._first
        window = self._gain * self._kept[: (end + self._reach - first) * size]
        speaker = self._target if self._source is None else self._source
        block = self.codec.encode_part(window, self._done - first, end - first, speaker)
        self._done, self._first = end, max(0, end - self._reach)
        self._kept = self._kept[(self._first - first) * size :]
        return self.codec.push(self._state, block, torch.tensor([block.shape[2]]))[0] / self._gain
