"""The house codec: content, prosody and timbre apart, 24 kHz, 25 frames a second, streaming decoder.

* **content** - what is said: mel spectrum -> ConvNeXt encoder -> finite scalar quantiser, trained under a
  phoneme CTC loss with speaker-adversarial pressure and a warped frequency axis;
* **prosody** - how it is said: the lowest spectrum and the energy, relative to the speaker -> a second, smaller
  quantiser, from which alone the decoder must take its pitch;
* **timbre** - who says it: one vector per utterance, pooled over time.

The decoder is the causal source-filter network of :mod:`speech_mtp.nn.source_filter`. Content, prosody and
timbre of different utterances can be mixed freely. Factorisation after FACodec (NaturalSpeech 3, arXiv:2403.03100).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp.codecs.base import Codec
from speech_mtp.nn.conv import Block
from speech_mtp.nn.fsq import FSQ
from speech_mtp.nn.source_filter import Pitch, SourceFilterDecoder, SourceFilterState
from speech_mtp.nn.spectral import LogMel, LowSpectrum
from speech_mtp.types import CodecSpec, Codes

LOSS_WEIGHTS = (1.0, 0.6)
"""Of content and prosody, where a talker is trained."""


@dataclass(frozen=True)
class DecoupledConfig:
    """Sizes of the codec; the defaults are those of the shipped model (7.6M parameters)."""

    sample_rate: int = 24_000
    hop: int = 240
    steps_per_frame: int = 4
    content_levels: tuple[int, ...] = (8, 5, 5, 5)
    prosody_levels: tuple[int, ...] = (8, 5, 5)
    timbre_dim: int = 64
    num_mels: int = 80
    low_bins: int = 85
    content_dims: tuple[int, int] = (128, 256)
    prosody_dims: tuple[int, int] = (96, 160)
    decoder_dims: tuple[int, int] = (320, 256)
    decoder_blocks: tuple[int, int] = (3, 4)
    num_symbols: int = 0


def scaled(log_mel: Tensor) -> Tensor:
    """Log-mel values in the range that the encoders read."""
    return (log_mel + 6) / 3


class FrameEncoder(nn.Module):
    """Features at 100 Hz -> vectors at the frame rate: ConvNeXt blocks, a strided patch, more blocks."""

    def __init__(self, dim_in: int, dims: tuple[int, int], stride: int, blocks: tuple[int, int], dim_out: int) -> None:
        super().__init__()
        fast, slow = dims
        self.enter = nn.Linear(dim_in, fast)
        self.fast = nn.ModuleList(Block(fast) for _ in range(blocks[0]))
        self.patch = nn.Linear(stride * fast, slow)
        self.slow = nn.ModuleList(Block(slow) for _ in range(blocks[1]))
        self.norm = nn.LayerNorm(slow)
        self.leave = nn.Linear(slow, dim_out)
        self.stride = stride

    def forward(self, x: Tensor, mask: Tensor, extra: Tensor | None = None, inner: bool = False) -> Tensor:
        """``x [B, stride * F, dim_in]``, ``mask [B, F, 1]``, ``extra [B, slow]`` added -> ``[B, F, dim_out]``.

        ``inner`` gives the normalised vectors ``[B, F, slow]`` before the last map.
        """
        fine = mask.repeat_interleave(self.stride, 1)
        x = self.enter(x) * fine
        for block in self.fast:
            x = block(x, fine)
        x = self.patch(x.unflatten(1, (-1, self.stride)).flatten(2))
        if extra is not None:
            x = x + extra[:, None]
        for block in self.slow:
            x = block(x, mask)
        x = self.norm(x)
        return x if inner else self.leave(x)


class TimbreEncoder(nn.Module):
    """Mel spectrum -> one vector per utterance ``[B, E]``: mean and deviation over time, normalised."""

    def __init__(self, num_mels: int, stride: int, timbre_dim: int, dim: int = 128) -> None:
        super().__init__()
        self.frames = FrameEncoder(num_mels, (dim // 2, dim), stride, (1, 2), dim)
        self.leave = nn.Linear(2 * dim, timbre_dim)

    def forward(self, mel: Tensor, mask: Tensor) -> Tensor:
        x = self.frames(mel, mask)
        count = mask.sum(1).clamp(min=1)
        mean = (x * mask).sum(1) / count
        deviation = (((x - mean[:, None]).square() * mask).sum(1) / count + 1e-5).sqrt()
        out = self.leave(torch.cat([mean, deviation], -1))
        return F.layer_norm(out, out.shape[-1:])


class Decoupled(Codec):
    """The decoupled codec. ``config`` entries are keyword arguments, see :class:`DecoupledConfig`."""

    def __init__(self, config: DecoupledConfig | None = None) -> None:
        super().__init__()
        c = config or DecoupledConfig()
        self.config = c
        self.content_fsq = FSQ(c.content_levels)
        self.prosody_fsq = FSQ(c.prosody_levels)
        self.spec = CodecSpec(
            sample_rate=c.sample_rate,
            frame_rate_hz=c.sample_rate / (c.hop * c.steps_per_frame),
            streams={"content": slice(0, 1), "prosody": slice(1, 2)},
            codebook_sizes=(self.content_fsq.size, self.prosody_fsq.size),
            timbre_dim=c.timbre_dim,
            loss_weights=LOSS_WEIGHTS,
            num_phonemes=c.num_symbols,
        )
        self.mel = LogMel(c.sample_rate, 1024, c.hop, c.num_mels)
        self.low = LowSpectrum(2048, c.hop, c.low_bins)
        self.content = FrameEncoder(c.num_mels, c.content_dims, c.steps_per_frame, (1, 4), len(c.content_levels))
        self.prosody = FrameEncoder(c.low_bins + 1, c.prosody_dims, c.steps_per_frame, (1, 3), len(c.prosody_levels))
        self.timbre = TimbreEncoder(c.num_mels, c.steps_per_frame, c.timbre_dim)
        self.speaker_of_prosody = nn.Linear(c.timbre_dim, c.prosody_dims[1])
        self.decoder = SourceFilterDecoder(
            len(c.content_levels),
            len(c.prosody_levels),
            c.timbre_dim,
            c.sample_rate,
            c.hop,
            c.steps_per_frame,
            c.decoder_dims,
            c.decoder_blocks,
        )
        self.phonemes = PhonemeHead(len(c.content_levels), c.num_symbols) if c.num_symbols else None

    @classmethod
    def tiny(cls, num_symbols: int = 0) -> Decoupled:
        """A tiny random codec for tests; with ``num_symbols`` it has a phoneme head."""
        torch.manual_seed(0)
        small = DecoupledConfig(
            content_dims=(16, 16),
            prosody_dims=(8, 16),
            decoder_dims=(16, 16),
            decoder_blocks=(1, 1),
            timbre_dim=8,
            num_symbols=num_symbols,
        )
        return cls(small).eval()

    @classmethod
    def from_config(cls, entries: dict[str, Any]) -> Decoupled:
        """From the ``asdict`` of a :class:`DecoupledConfig` (lists become tuples)."""
        return cls(DecoupledConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in entries.items()}))  # type: ignore[arg-type]

    def to_config(self) -> dict[str, object]:
        return asdict(self.config)

    # -- encoding ---------------------------------------------------------------------------------------------
    @property
    def reach_frames(self) -> int:
        """What the wider of the two encoders sees, with the window of the longest spectrum."""
        return max(self._reach(encoder) for encoder in (self.content, self.prosody))

    def _reach(self, encoder: FrameEncoder) -> int:
        fast, slow = (
            sum(block.reach for block in cast(Iterable[Block], part)) for part in (encoder.fast, encoder.slow)
        )
        samples = max(self.mel.n_fft, self.low.n_fft) // 2 + fast * self.config.hop
        return slow + -(-samples // self.spec.samples_per_frame)

    def features(self, wave: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``wave [B, S]`` -> scaled log-mel ``[B, 4F, mels]``, low spectrum + energy ``[B, 4F, bins + 1]``, mask."""
        size = self.spec.samples_per_frame
        frames = -(-wave.shape[-1] // size)
        wave = F.pad(wave, (0, frames * size - wave.shape[-1]))
        wave = wave * (torch.arange(wave.shape[-1], device=wave.device) < lengths[:, None])
        mask = torch.arange(frames, device=wave.device) < (-(-lengths // size))[:, None]
        mel = scaled(self.mel(wave))
        energy = mel.exp().mean(-1, keepdim=True).log()
        return mel, torch.cat([(self.low(wave) + 2) / 3, energy], -1), mask[..., None].to(mel.dtype)

    def quantise(
        self, mel: Tensor, low: Tensor, mask: Tensor, timbre: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Features and timbre -> (values, codes) of content and of prosody, straight-through."""
        content = self.content_fsq(self.content(mel, mask).float())
        prosody = self.prosody_fsq(self.prosody(low, mask, self.speaker_of_prosody(timbre)).float())
        return content, prosody

    @torch.inference_mode()
    def encode(self, wave: Tensor, lengths: Tensor | None = None, timbre: Tensor | None = None) -> Codes:
        wave = wave[:, 0]
        if lengths is None:
            lengths = torch.full((wave.shape[0],), wave.shape[-1], device=wave.device)
        mel, low, mask = self.features(wave, lengths)
        timbre = self.timbre(mel, mask) if timbre is None else timbre
        (_, content), (_, prosody) = self.quantise(mel, low, mask, timbre)
        frames = torch.stack([content, prosody], 1) * mask[:, None, :, 0].long()
        return Codes(frames, mask[..., 0].sum(1).long(), timbre)

    def phoneme_log_probs(self, codes: Codes) -> Tensor:
        if self.phonemes is None:
            return super().phoneme_log_probs(codes)
        steps = torch.arange(codes.frames.shape[2], device=codes.frames.device)
        content, _ = self.values(codes.frames)
        logits: Tensor = self.phonemes(content, (steps < codes.lengths[:, None])[..., None].float())
        return logits.log_softmax(-1)

    # -- decoding ---------------------------------------------------------------------------------------------
    def values(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """``frames [B, 2, F]`` codes -> content ``[B, F, Dc]`` and prosody ``[B, F, Dp]`` values."""
        return self.content_fsq.values(frames[:, 0]), self.prosody_fsq.values(frames[:, 1])

    @torch.inference_mode()
    def open(self, slots: int) -> DecoupledState:
        device = self.decoder.window.device
        zeros = torch.zeros(slots, dtype=torch.long, device=device)
        return DecoupledState(self.decoder.open(slots, device), zeros, zeros.clone())

    @torch.inference_mode()
    def reset(self, state: DecoupledState, rows: Tensor, timbre: Tensor | None) -> None:
        if timbre is None:
            raise ValueError("The decoupled codec needs a timbre vector for every row; encode a voice or name one.")
        self.decoder.reset(state.inner, rows, timbre)
        state.raw[rows] = 0
        state.due[rows] = 0

    @property
    def delay_s(self) -> float:
        """Seconds that the decoder looks ahead."""
        return self.decoder.delay_samples / self.spec.sample_rate

    @torch.inference_mode()
    def push(self, state: DecoupledState, frames: Tensor, lengths: Tensor) -> list[Tensor]:
        state.due += lengths * self.spec.samples_per_frame
        return self._advance(state, *self.values(frames), lengths)

    @torch.inference_mode()
    def flush(self, state: DecoupledState, rows: Tensor) -> list[Tensor]:
        slots, drain = len(state.due), self.decoder.flush_frames
        lengths = torch.zeros(slots, dtype=torch.long, device=state.due.device)
        lengths[rows] = drain
        content = torch.zeros(slots, drain, len(self.config.content_levels), device=state.due.device)
        prosody = torch.zeros(slots, drain, len(self.config.prosody_levels), device=state.due.device)
        waves = self._advance(state, content, prosody, lengths)
        return [waves[int(row)] for row in rows]

    def _advance(self, state: DecoupledState, content: Tensor, prosody: Tensor, lengths: Tensor) -> list[Tensor]:
        """Run the decoder and cut each row's raw samples to those that are final and due."""
        wave, _ = self.decoder(state.inner, content, prosody, lengths)
        delay = self.decoder.delay_samples
        start = state.raw - delay
        state.raw += lengths * self.spec.samples_per_frame
        before = torch.minimum(start.clamp(min=0), state.due)
        after = torch.minimum((state.raw - delay).clamp(min=0), state.due)
        bounds = torch.stack([before - start, after - start], 1).clamp(min=0).tolist()
        return [row[a:b] for row, (a, b) in zip(wave, bounds, strict=True)]


@dataclass
class DecoupledState:
    """Decoder state of every slot, the raw samples made (``raw``) and the samples owed (``due``), ``[slots]``."""

    inner: SourceFilterState
    raw: Tensor
    due: Tensor


class PhonemeHead(nn.Module):
    """Content values -> phoneme logits for CTC (training pressure) and forced alignment. ``[B, F, V]``."""

    def __init__(self, dim_in: int, num_symbols: int, dim: int = 192) -> None:
        super().__init__()
        self.enter = nn.Linear(dim_in, dim)
        self.blocks = nn.ModuleList(Block(dim, 5) for _ in range(2))
        self.leave = nn.Linear(dim, num_symbols)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        x = self.enter(values) * mask
        for block in self.blocks:
            x = block(x, mask)
        return self.leave(x)


__all__ = ["Decoupled", "DecoupledConfig", "Pitch"]
