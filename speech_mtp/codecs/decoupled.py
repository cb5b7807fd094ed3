"""The house codec: content, prosody and timbre apart, 24 kHz, 25 frames a second, streaming decoder.

* **content** - what is said: mel spectrum -> ConvNeXt encoder -> finite scalar quantiser, trained under a
  phoneme CTC loss with speaker-adversarial pressure and a warped frequency axis;
* **prosody** - how it is said: the lowest spectrum and the energy, relative to the speaker -> a second, smaller
  quantiser, from which alone the decoder must take its pitch;
* **timbre** - who says it: one vector per utterance, pooled over time;
* **detail** - optional: what else is in the sound, in a few bits more. The decoder learns to do without it, so it can
  be dropped (:meth:`Decoupled.without_detail`), and a language model need not learn it.

The decoder is the causal source-filter network of :mod:`speech_mtp.nn.source_filter`. Content, prosody and
timbre of different utterances can be mixed freely. Factorisation after FACodec (NaturalSpeech 3, arXiv:2403.03100).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp.codecs._source_filter import FrameEncoder, PhonemeHead, SourceFilterCodec, scaled
from speech_mtp.nn.fsq import FSQ
from speech_mtp.nn.source_filter import Pitch, SourceFilterDecoder
from speech_mtp.nn.spectral import LogMel, LowSpectrum
from speech_mtp.types import CodecSpec, Codes

STREAMS = ("content", "prosody", "detail")
LOSS_WEIGHTS = (1.0, 0.6)
"""Of content and prosody, where a talker is trained; detail counts as prosody does."""


@dataclass(frozen=True)
class DecoupledConfig:
    """Sizes of the codec; the defaults are those of codec 1 (7.7M parameters). The one that ships has
    ``content_levels`` 8, 4, 4, 4.

    Frames so long that several phonemes fit in (``steps_per_frame`` hundredths of a second) are trained with
    ``phonemes_per_frame``; such a codec aligns no text, another one must.
    """

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
    phonemes_per_frame: int = 1
    detail_levels: tuple[int, ...] = ()
    detail_dims: tuple[int, int] = (96, 160)

    def __post_init__(self) -> None:
        if self.phonemes_per_frame < 1:
            raise ValueError(f"phonemes_per_frame is {self.phonemes_per_frame}; it must be 1 at least.")


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


class Decoupled(SourceFilterCodec):
    """The decoupled codec. ``config`` entries are keyword arguments, see :class:`DecoupledConfig`."""

    Config = DecoupledConfig
    config: DecoupledConfig

    def __init__(self, config: DecoupledConfig | None = None) -> None:
        super().__init__()
        c = config or DecoupledConfig()
        self.config = c
        self.content_fsq = FSQ(c.content_levels)
        self.prosody_fsq = FSQ(c.prosody_levels)
        self.detail_fsq = FSQ(c.detail_levels) if c.detail_levels else None
        sizes = [fsq.size for fsq in (self.content_fsq, self.prosody_fsq, self.detail_fsq) if fsq is not None]
        self.spec = CodecSpec(
            sample_rate=c.sample_rate,
            frame_rate_hz=c.sample_rate / (c.hop * c.steps_per_frame),
            streams={name: slice(k, k + 1) for k, name in enumerate(STREAMS[: len(sizes)])},
            codebook_sizes=tuple(sizes),
            timbre_dim=c.timbre_dim,
            loss_weights=(*LOSS_WEIGHTS, LOSS_WEIGHTS[1])[: len(sizes)],
            num_phonemes=c.num_symbols if c.phonemes_per_frame == 1 else 0,
        )
        self.mel = LogMel(c.sample_rate, 1024, c.hop, c.num_mels)
        self.low = LowSpectrum(2048, c.hop, c.low_bins)
        self.content = FrameEncoder(c.num_mels, c.content_dims, c.steps_per_frame, (1, 4), len(c.content_levels))
        self.prosody = FrameEncoder(c.low_bins + 1, c.prosody_dims, c.steps_per_frame, (1, 3), len(c.prosody_levels))
        self.detail = (
            FrameEncoder(c.num_mels, c.detail_dims, c.steps_per_frame, (1, 3), len(c.detail_levels))
            if c.detail_levels
            else None
        )
        self.timbre = TimbreEncoder(c.num_mels, c.steps_per_frame, c.timbre_dim)
        self.speaker_of_prosody = nn.Linear(c.timbre_dim, c.prosody_dims[1])
        self.decoder = SourceFilterDecoder(
            len(c.content_levels) + len(c.detail_levels),
            len(c.prosody_levels),
            c.timbre_dim,
            c.sample_rate,
            c.hop,
            c.steps_per_frame,
            c.decoder_dims,
            c.decoder_blocks,
        )
        self.phonemes = (
            PhonemeHead(len(c.content_levels), c.num_symbols, per_frame=c.phonemes_per_frame) if c.num_symbols else None
        )

    @classmethod
    def tiny(cls, num_symbols: int = 0, detail_levels: tuple[int, ...] = ()) -> Decoupled:
        """A tiny random codec for tests; with ``num_symbols`` it has a phoneme head."""
        torch.manual_seed(0)
        small = DecoupledConfig(
            content_dims=(16, 16),
            prosody_dims=(8, 16),
            decoder_dims=(16, 16),
            decoder_blocks=(1, 1),
            timbre_dim=8,
            num_symbols=num_symbols,
            detail_levels=detail_levels,
            detail_dims=(8, 16),
        )
        return cls(small).eval()

    def without_detail(self) -> Decoupled:
        """The same codec without the stream ``detail``; it decodes as this one does where detail is dropped.

        Raises ``ValueError`` for a codec that has none.
        """
        if self.detail is None:
            raise ValueError("This codec has no stream detail that could be dropped.")
        with torch.random.fork_rng(devices=[]):
            plain = type(self)(replace(self.config, detail_levels=()))
        state = {name: value for name, value in self.state_dict().items() if not name.startswith("detail")}
        first, last = len(self.config.content_levels), len(self.config.detail_levels)
        name = "decoder.slow_in.conv.weight"
        state[name] = torch.cat([state[name][:, :first], state[name][:, first + last :]], 1)
        plain.load_state_dict(state)
        return plain.to(self.decoder.window.device).train(self.training)

    # -- encoding ---------------------------------------------------------------------------------------------
    @property
    def reach_frames(self) -> int:
        """What the widest of the encoders sees, with the window of the longest spectrum."""
        encoders = (self.content, self.prosody, self.detail)
        return max(self._reach(encoder) for encoder in encoders if encoder is not None)

    def quantise(
        self, mel: Tensor, low: Tensor, mask: Tensor, timbre: Tensor
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Features and timbre -> (values, codes) of content and of prosody, straight-through."""
        content = self.content_fsq(self.content(mel, mask).float())
        prosody = self.prosody_fsq(self.prosody(low, mask, self.speaker_of_prosody(timbre)).float())
        return content, prosody

    def quantise_detail(self, mel: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Features -> (values, codes) of detail, straight-through."""
        assert self.detail is not None
        assert self.detail_fsq is not None
        found: tuple[Tensor, Tensor] = self.detail_fsq(self.detail(mel, mask).float())
        return found

    @torch.inference_mode()
    def encode(self, wave: Tensor, lengths: Tensor | None = None, timbre: Tensor | None = None) -> Codes:
        wave = wave[:, 0]
        if lengths is None:
            lengths = torch.full((wave.shape[0],), wave.shape[-1], device=wave.device)
        mel, low, mask = self.features(wave, lengths)
        timbre = self.timbre(mel, mask) if timbre is None else timbre
        found = [codes for _, codes in self.quantise(mel, low, mask, timbre)]
        if self.detail is not None:
            found.append(self.quantise_detail(mel, mask)[1])
        frames = torch.stack(found, 1) * mask[:, None, :, 0].long()
        return Codes(frames, mask[..., 0].sum(1).long(), timbre)

    # -- decoding ---------------------------------------------------------------------------------------------
    def values(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """``frames [B, K, F]`` codes -> content, with detail behind it, ``[B, F, Dc]`` and prosody ``[B, F, Dp]``."""
        content, prosody = self.content_fsq.values(frames[:, 0]), self.prosody_fsq.values(frames[:, 1])
        if self.detail_fsq is not None:
            content = torch.cat([content, self.detail_fsq.values(frames[:, 2])], -1)
        return content, prosody

    def phoneme_values(self, frames: Tensor) -> Tensor:
        return self.content_fsq.values(frames[:, 0])

    def voice(self, timbre: Tensor | None, rows: int) -> Tensor:
        if timbre is None:
            raise ValueError("The decoupled codec needs a timbre vector for every row; encode a voice or name one.")
        return timbre


__all__ = ["Decoupled", "DecoupledConfig", "Pitch", "scaled"]
