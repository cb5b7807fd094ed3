"""Batches for a fast device: all audio of a store lies in its memory, and crops are cut there by index.

A batch costs the host a few draws of numbers and one small copy, and never waits for the device.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from speech_mtp.corpus.store import PITCH_HOP, AudioStore
from speech_mtp.text.phonemes import parse
from speech_mtp.training.codec_data import CodecBatch, CodecData, CodecTaskConfig
from speech_mtp.types import CodecSpec


class DeviceAudio:
    """All audio (16-bit) and pitch of ``store`` on ``device``, and where its rows lie in them."""

    def __init__(self, store: AudioStore, device: torch.device) -> None:
        audio, pitch, self.starts, self.pitch_starts = store.flat()
        self.store, self.device = store, device
        self.audio = torch.from_numpy(audio.astype(np.int16, copy=False)).to(device)
        self.pitch = torch.from_numpy(pitch.astype(np.float32, copy=False)).to(device)
        self.samples = np.array([row.samples for row in store.rows])

    def table(self, *columns: np.ndarray) -> list[Tensor]:
        """Columns of integers on the device, in one copy that does not wait."""
        host = torch.from_numpy(np.stack(columns).astype(np.int64))
        if self.device.type == "cuda":
            host = host.pin_memory()
        return list(host.to(self.device, non_blocking=True))


def slices(track: Tensor, start: Tensor, lengths: Tensor, count: int) -> Tensor:
    """``count`` entries of ``track [N]`` from each of ``start [B]`` on, zeros after ``lengths [B]``: ``[B, count]``."""
    steps = torch.arange(count, device=track.device)
    at = (start[:, None] + steps).clamp(max=len(track) - 1)
    return track[at] * (steps < lengths[:, None])


class DeviceCodecData(CodecData):
    """:class:`CodecData` with the audio on the device. Every utterance keeps its speed."""

    def __init__(self, audio: DeviceAudio, spec: CodecSpec, config: CodecTaskConfig, split: str = "train") -> None:
        super().__init__(audio.store, spec, config, split)
        if config.resample and not config.keep_codes:
            raise ValueError("Audio on the device keeps its speed; set task.resample to 0.")
        self.audio = audio
        self.voice_of = np.array([self.voices.index(row.voice) for row in audio.store.rows])
        self.phonemes = [np.array([unit.id for unit in parse(row.phonemes)]) for row in audio.store.rows]

    def batch(self, number: int) -> CodecBatch:
        rng = np.random.default_rng((self.config.seed, number))
        picks, others = self.draw(rng).T
        size, crop, count = self.spec.samples_per_frame, self.config.crop_frames, self.config.batch
        samples = self.audio.samples[picks]
        limit = int(self.config.reference_s * self.spec.sample_rate)
        references = np.minimum(self.audio.samples[others], limit)
        frames = -(-samples // size)
        longest = -(-int(frames.max()) // 16) * 16 * size
        first = (rng.random(count) * np.maximum(1, frames - crop - 1)).astype(int)
        gains = (rng.uniform(0.6, 1.3, count) * 4096).astype(int)
        starts, pitch_starts = self.audio.starts, self.audio.pitch_starts
        start, length, pitch_start, other, other_length, crop_at, gain, voice = self.audio.table(
            starts[picks], samples, pitch_starts[picks], starts[others], references, first, gains, self.voice_of[picks]
        )
        scale = gain[:, None] / (4096 * 32768)
        phonemes = [self.phonemes[row] for row in picks]
        return CodecBatch(
            wave=slices(self.audio.audio, start, length, longest) * scale,
            lengths=length,
            pitch=slices(self.audio.pitch, pitch_start, -(-length // PITCH_HOP), longest // PITCH_HOP),
            phonemes=self.audio.table(np.concatenate(phonemes))[0],
            phoneme_lengths=torch.tensor([len(row) for row in phonemes]),
            voice=voice,
            reference=slices(self.audio.audio, other, other_length, limit) * scale,
            reference_lengths=other_length,
            crop=crop_at,
            frames=torch.from_numpy(frames),
        )
