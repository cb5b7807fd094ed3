"""What the codecs of this house share: features at 100 Hz, frame encoders, and the streaming source-filter decoder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp.codecs.base import Codec
from speech_mtp.nn.conv import Block
from speech_mtp.nn.source_filter import SourceFilterDecoder, SourceFilterState
from speech_mtp.nn.spectral import LogMel, LowSpectrum
from speech_mtp.types import Codes


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


class PhonemeHead(nn.Module):
    """Content values -> phoneme logits for CTC (training pressure) and forced alignment, ``per_frame`` in every frame:
    ``[B, F, D]`` -> ``[B, F * per_frame, V]``."""

    def __init__(self, dim_in: int, num_symbols: int, dim: int = 192, per_frame: int = 1) -> None:
        super().__init__()
        self.per_frame = per_frame
        self.enter = nn.Linear(dim_in, dim)
        self.blocks = nn.ModuleList(Block(dim, 5) for _ in range(2))
        self.leave = nn.Linear(dim, per_frame * num_symbols)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        x = self.enter(values) * mask
        for block in self.blocks:
            x = block(x, mask)
        return self.leave(x).unflatten(-1, (self.per_frame, -1)).flatten(1, 2)


@dataclass
class DecodingState:
    """Decoder state of every slot, the raw samples made (``raw``) and the samples owed (``due``), ``[slots]``."""

    inner: SourceFilterState
    raw: Tensor
    due: Tensor


class SourceFilterCodec(Codec):
    """A codec whose decoder is :class:`~speech_mtp.nn.source_filter.SourceFilterDecoder`. Subclasses make the parts,
    ``phonemes`` being None for one that does not tell any, and say what the decoder reads of codes and of timbre."""

    Config: ClassVar[type]
    """A dataclass of the sizes."""
    config: Any
    mel: LogMel
    low: LowSpectrum
    decoder: SourceFilterDecoder
    phonemes: PhonemeHead | None

    @abstractmethod
    def values(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """``frames [B, K, F]`` codes -> what the decoder reads as content ``[B, F, Dc]`` and as prosody ``[B, F, Dp]``,
        from which alone it takes its pitch."""

    @abstractmethod
    def voice(self, timbre: Tensor | None, rows: int) -> Tensor:
        """What the decoder reads as timbre, ``[rows, E]``."""

    def phoneme_values(self, frames: Tensor) -> Tensor:
        """``[B, F, D]``: what the phoneme head reads of codes ``[B, K, F]``."""
        return self.values(frames)[0]

    def phoneme_log_probs(self, codes: Codes) -> Tensor:
        if self.phonemes is None or not self.spec.num_phonemes:
            return super().phoneme_log_probs(codes)
        steps = torch.arange(codes.frames.shape[2], device=codes.frames.device)
        logits: Tensor = self.phonemes(
            self.phoneme_values(codes.frames), (steps < codes.lengths[:, None])[..., None].float()
        )
        return logits.log_softmax(-1)

    @classmethod
    def from_config(cls, entries: dict[str, Any]) -> Self:
        """From the :meth:`to_config` of another one (lists become tuples)."""
        return cls(cls.Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in entries.items()}))

    def to_config(self) -> dict[str, object]:
        return asdict(self.config)

    # -- encoding ---------------------------------------------------------------------------------------------
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

    @torch.inference_mode()
    def open(self, slots: int) -> DecodingState:
        device = self.decoder.window.device
        zeros = torch.zeros(slots, dtype=torch.long, device=device)
        return DecodingState(self.decoder.open(slots, device), zeros, zeros.clone())

    @torch.inference_mode()
    def reset(self, state: DecodingState, rows: Tensor, timbre: Tensor | None) -> None:
        self.decoder.reset(state.inner, rows, self.voice(timbre, len(rows)))
        state.raw[rows] = 0
        state.due[rows] = 0

    @property
    def delay_s(self) -> float:
        """Seconds that the decoder looks ahead."""
        return self.decoder.delay_samples / self.spec.sample_rate

    @torch.inference_mode()
    def push(self, state: DecodingState, frames: Tensor, lengths: Tensor) -> list[Tensor]:
        state.due += lengths * self.spec.samples_per_frame
        return self._advance(state, *self.values(frames), lengths)

    @torch.inference_mode()
    def flush(self, state: DecodingState, rows: Tensor) -> list[Tensor]:
        slots, drain = len(state.due), self.decoder.flush_frames
        lengths = torch.zeros(slots, dtype=torch.long, device=state.due.device)
        lengths[rows] = drain
        frames = torch.zeros(slots, self.spec.num_streams, drain, dtype=torch.long, device=state.due.device)
        content, prosody = (torch.zeros_like(values) for values in self.values(frames))
        waves = self._advance(state, content, prosody, lengths)
        return [waves[int(row)] for row in rows]

    def _advance(self, state: DecodingState, content: Tensor, prosody: Tensor, lengths: Tensor) -> list[Tensor]:
        """Run the decoder and cut each row's raw samples to those that are final and due."""
        wave, _ = self.decoder(state.inner, content, prosody, lengths)
        delay = self.decoder.delay_samples
        start = state.raw - delay
        state.raw += lengths * self.spec.samples_per_frame
        before = torch.minimum(start.clamp(min=0), state.due)
        after = torch.minimum((state.raw - delay).clamp(min=0), state.due)
        bounds = torch.stack([before - start, after - start], 1).clamp(min=0).tolist()
        return [row[a:b] for row, (a, b) in zip(wave, bounds, strict=True)]
