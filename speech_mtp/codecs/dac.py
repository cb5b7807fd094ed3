"""DAC (Kumar et al. 2023, arXiv 2306.06546), through ``transformers``: 16, 24 or 44.1 kHz.

The decoder is not causal: its convolutions look ahead about as far as they look back. Streaming therefore lags by that
look-ahead (near ten frames) and ``flush`` gives the rest; what is emitted is final and equals offline decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from speech_mtp.codecs._rowwise import RowwiseCodec, load_pretrained, pick_streams, randomise, ready_model
from speech_mtp.codecs._stages import Chain, Convolution, Pointwise, Residual, Stage, Upsampling
from speech_mtp.types import CodecSpec


class Dac(RowwiseCodec):
    """DAC from ``source``: a folder or hub id with safetensors (``descript/dac_24khz``), or a ready ``DacModel``.

    ``num_codebooks`` keeps the first so many of the residual codebooks (default: all of the model).
    A ready model is taken over: weight normalisation, if it has any, is folded into its weights.
    """

    def __init__(self, source: str | Path | nn.Module, num_codebooks: int | None = None) -> None:
        super().__init__()
        self.model = ready_model(source, _load)
        config = self.model.config
        self.decoder = Chain(_decoder_stages(self.model.decoder))
        streams = pick_streams(config.n_codebooks, num_codebooks)
        self.spec = CodecSpec(
            config.sampling_rate,
            config.sampling_rate / config.hop_length,
            {"codebooks": slice(0, streams)},
            (config.codebook_size,) * streams,
        )

    @classmethod
    def from_pretrained(cls, source: str | Path, num_codebooks: int | None = None) -> Dac:
        """The model in a local folder or on the hub (``config.json`` and ``model.safetensors``)."""
        return cls(source, num_codebooks)

    @classmethod
    def tiny(cls, downsampling_ratios: Sequence[int] = (4, 8)) -> Dac:
        """A random model of 3 codebooks of 16, and 32 samples per frame by default, for tests. Downloads nothing."""
        from transformers import DacConfig, DacModel

        config = DacConfig(
            encoder_hidden_size=4,
            decoder_hidden_size=16,
            downsampling_ratios=list(downsampling_ratios),
            n_codebooks=3,
            codebook_size=16,
            codebook_dim=4,
        )
        model = DacModel(config)
        randomise(model)
        return cls(model)

    def _encode_row(self, wave: Tensor) -> Tensor:
        wave = nn.functional.pad(wave, (0, -wave.shape[-1] % self.spec.samples_per_frame))
        codes: Tensor = self.model.encode(wave, n_quantizers=self.spec.num_streams, return_dict=True).audio_codes
        return codes[0]

    def _latents(self, frames: Tensor) -> Tensor:
        latents: Tensor = self.model.quantizer.from_codes(frames)[0]
        return latents


def _decoder_stages(decoder: Any) -> list[Stage]:
    stages: list[Stage] = [_convolution(decoder.conv1)]
    for block in decoder.block:
        stages += [Pointwise(block.snake1), _upsampling(block.conv_t1)]
        stages += [_residual(unit) for unit in (block.res_unit1, block.res_unit2, block.res_unit3)]
    return [*stages, Pointwise(decoder.snake1), _convolution(decoder.conv2), Pointwise(decoder.tanh)]


def _residual(unit: Any) -> Residual:
    first, second = _convolution(unit.conv1), _convolution(unit.conv2)
    return Residual(Chain([Pointwise(unit.snake1), first, Pointwise(unit.snake2), second]), Chain([]))


def _convolution(conv: nn.Conv1d) -> Convolution:
    padding = int(conv.padding[0])
    return Convolution(conv, padding, padding)


def _upsampling(conv: nn.ConvTranspose1d) -> Upsampling:
    return Upsampling(conv, int(conv.padding[0]), int(conv.padding[0]) - int(conv.output_padding[0]))


def _load(source: str | Path) -> nn.Module:
    from transformers import DacModel

    return load_pretrained(DacModel, source)
