"""A codec without roles: the same features, sizes and decoder as the decoupled one, but one latent for everything.

What is said, how, and by whom goes through residual books together, as in EnCodec (arXiv:2210.13438) or DAC
(arXiv:2306.06546), and there is no timbre: the *coupled* tokenizer that a decoupled one is compared with. With
``semantic`` the first book must tell the phonemes, and the others carry what is left: *semi-decoupled*, the idea of
SpeechTokenizer (arXiv:2308.16692), whose first book learns from a recogniser's features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from speech_mtp.codecs._source_filter import FrameEncoder, PhonemeHead, SourceFilterCodec
from speech_mtp.nn.residual_vq import ResidualVQ
from speech_mtp.nn.source_filter import SourceFilterDecoder
from speech_mtp.nn.spectral import LogMel, LowSpectrum
from speech_mtp.types import CodecSpec, Codes


@dataclass(frozen=True)
class CoupledConfig:
    """Sizes of the codec. ``books`` are those of the codebooks: the defaults carry as many bits a frame as the
    decoupled one's. With ``semantic`` and ``num_symbols`` the first book has a phoneme head."""

    sample_rate: int = 24_000
    hop: int = 240
    steps_per_frame: int = 4
    books: tuple[int, ...] = (1000, 200)
    dim: int = 32
    semantic: bool = False
    num_mels: int = 80
    low_bins: int = 85
    encoder_dims: tuple[int, int] = (160, 320)
    decoder_dims: tuple[int, int] = (320, 256)
    decoder_blocks: tuple[int, int] = (3, 4)
    num_symbols: int = 0


class Coupled(SourceFilterCodec):
    """The coupled codec. ``config`` entries are keyword arguments, see :class:`CoupledConfig`."""

    Config = CoupledConfig
    config: CoupledConfig

    def __init__(self, config: CoupledConfig | None = None) -> None:
        super().__init__()
        c = config or CoupledConfig()
        self.config = c
        if c.semantic and not c.num_symbols:
            raise ValueError("A semantic first book tells phonemes; say how many there are (num_symbols).")
        self.spec = CodecSpec(
            sample_rate=c.sample_rate,
            frame_rate_hz=c.sample_rate / (c.hop * c.steps_per_frame),
            streams={f"book{k}": slice(k, k + 1) for k in range(len(c.books))},
            codebook_sizes=c.books,
            num_phonemes=c.num_symbols if c.semantic else 0,
        )
        self.mel = LogMel(c.sample_rate, 1024, c.hop, c.num_mels)
        self.low = LowSpectrum(2048, c.hop, c.low_bins)
        self.encoder = FrameEncoder(c.num_mels + c.low_bins + 1, c.encoder_dims, c.steps_per_frame, (1, 4), c.dim)
        self.quantiser = ResidualVQ(c.books, c.dim)
        self.decoder = SourceFilterDecoder(
            c.dim, c.dim, 1, c.sample_rate, c.hop, c.steps_per_frame, c.decoder_dims, c.decoder_blocks
        )
        self.phonemes = PhonemeHead(c.dim, c.num_symbols) if c.semantic else None

    @classmethod
    def tiny(cls, num_symbols: int = 0) -> Coupled:
        """A tiny random codec for tests; with ``num_symbols`` its first book tells phonemes."""
        torch.manual_seed(0)
        small = CoupledConfig(
            books=(50, 20),
            dim=8,
            encoder_dims=(16, 16),
            decoder_dims=(16, 16),
            decoder_blocks=(1, 1),
            semantic=bool(num_symbols),
            num_symbols=num_symbols,
        )
        return cls(small).eval()

    # -- encoding ---------------------------------------------------------------------------------------------
    @property
    def reach_frames(self) -> int:
        return self._reach(self.encoder)

    def latent(self, mel: Tensor, low: Tensor, mask: Tensor) -> Tensor:
        """Features -> vectors before quantisation ``[B, F, dim]``."""
        out: Tensor = self.encoder(torch.cat([mel, low], -1), mask)
        return out

    @torch.inference_mode()
    def encode(self, wave: Tensor, lengths: Tensor | None = None, timbre: Tensor | None = None) -> Codes:
        wave = wave[:, 0]
        if lengths is None:
            lengths = torch.full((wave.shape[0],), wave.shape[-1], device=wave.device)
        mel, low, mask = self.features(wave, lengths)
        _, codes, _ = self.quantiser(self.latent(mel, low, mask).float(), mask)
        return Codes(codes * mask[:, None, :, 0].long(), mask[..., 0].sum(1).long())

    # -- decoding ---------------------------------------------------------------------------------------------
    def values(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """The sum of all books, for both: pitch has no book of its own."""
        whole = torch.stack(self.quantiser.parts(frames)).sum(0)
        return whole, whole

    def phoneme_values(self, frames: Tensor) -> Tensor:
        return self.quantiser.parts(frames)[0]

    def voice(self, timbre: Tensor | None, rows: int) -> Tensor:
        """The same for everybody."""
        return torch.ones(rows, 1, device=self.decoder.window.device)
