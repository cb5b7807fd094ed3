"""Mimi (Défossez et al. 2024, arXiv 2410.00037), through ``transformers``: 24 kHz, 12.5 frames per second.

The first codebook is distilled from a self-supervised speech model ("semantic"), the others are residual
("acoustic"). The decoder is causal, so streaming answers at once and is exact: convolutions keep their past, the
transformer its sliding-window key-value cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from speech_mtp.codecs._rowwise import (
    Quantiser,
    TrainableCodec,
    load_pretrained,
    pick_streams,
    randomise,
    ready_model,
)
from speech_mtp.codecs._stages import Chain, Stage, seanet
from speech_mtp.nn.kv_cache import as_keyword
from speech_mtp.types import CodecSpec


class Mimi(TrainableCodec):
    """Mimi from ``source``: a folder or hub id with safetensors (``kyutai/mimi``), or a ready ``MimiModel``.

    ``num_codebooks`` keeps the first so many codebooks (default: all of the model, 32; Moshi uses 8).
    """

    def __init__(self, source: str | Path | nn.Module, num_codebooks: int | None = None) -> None:
        super().__init__()
        self.model = ready_model(source, _load)
        config = self.model.config
        if config.audio_channels != 1 or not config.use_causal_conv:
            raise ValueError("This Mimi model is stereo or not causal; use the published mono model (kyutai/mimi).")
        upsample, transformer, layers = _decoder_parts(self.model)
        self.decoder = Chain([*seanet(upsample).stages, _CachedTransformer(transformer), *seanet(layers).stages])
        semantic = config.num_semantic_quantizers
        streams = pick_streams(config.num_quantizers, num_codebooks, least=semantic + 1)
        self.spec = CodecSpec(
            config.sampling_rate,
            float(config.frame_rate),
            {"semantic": slice(0, semantic), "acoustic": slice(semantic, streams)},
            (config.codebook_size,) * streams,
        )

    @classmethod
    def from_pretrained(cls, source: str | Path, num_codebooks: int | None = None) -> Mimi:
        """The model in a local folder or on the hub (``config.json`` and ``model.safetensors``)."""
        return cls(source, num_codebooks)

    @classmethod
    def tiny(cls) -> Mimi:
        """A random model of 16 samples per frame and 4 codebooks of 16, for tests. Downloads nothing."""
        from transformers import MimiConfig, MimiModel

        model = MimiModel(
            MimiConfig(
                hidden_size=16,
                num_filters=4,
                upsampling_ratios=[4, 2],
                codebook_size=16,
                codebook_dim=8,
                vector_quantization_hidden_dimension=8,
                num_quantizers=4,
                upsample_groups=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                intermediate_size=32,
                sliding_window=6,
                layer_scale_initial_scale=1.0,
            )
        )
        randomise(model)
        return cls(model)

    def latents(self, wave: Tensor) -> Tensor:
        half = self.model.encoder
        if hasattr(half, "encoder_seanet"):  # recent transformers make the encoder half a model of its own
            out: Tensor = half(wave).latents
            return out
        heard = self.model.encoder_transformer(half(wave).transpose(1, 2))[0].transpose(1, 2)
        out = heard if self.model.downsample is None else self.model.downsample(heard)
        return out

    @property
    def quantisers(self) -> list[Quantiser]:
        semantic = self.spec.streams["semantic"].stop
        numbers = tuple(range(self.spec.num_streams))
        parts = self._residual_quantisers()
        same = nn.Identity()
        return [
            Quantiser(books, part.input_proj or same, part.output_proj or same)
            for books, part in zip((numbers[:semantic], numbers[semantic:]), parts, strict=True)
            if books
        ]

    def _residual_quantisers(self) -> tuple[Any, Any]:
        whole = self.model.quantizer
        return whole.semantic_residual_vector_quantizer, whole.acoustic_residual_vector_quantizer

    @property
    def dim_book(self) -> int:
        return int(self.model.config.codebook_dim)

    def _codebook(self, number: int) -> Any:
        semantic, acoustic = self._residual_quantisers()
        return [*semantic.layers, *acoustic.layers][number].codebook

    def book(self, number: int) -> Tensor:
        found: Tensor = self._codebook(number).embed
        return found

    def set_book(self, number: int, vectors: Tensor) -> None:
        book = self._codebook(number)
        book.embed_sum.copy_(vectors)
        book.cluster_usage.fill_(1.0)
        book._embed = None  # what it keeps of the vectors before

    def sound(self, latents: Tensor) -> Tensor:
        upsample, transformer, layers = _decoder_parts(self.model)
        for layer in upsample:
            latents = layer(latents)
        latents = transformer(latents.transpose(1, 2))[0].transpose(1, 2)
        for layer in layers:
            latents = layer(latents)
        return latents

    def _encode_row(self, wave: Tensor) -> Tensor:
        codes: Tensor = self.model.encode(wave, num_quantizers=self.spec.num_streams, return_dict=True).audio_codes
        return codes[0]

    def _latents(self, frames: Tensor) -> Tensor:
        latents: Tensor = self.model.quantizer.decode(frames)
        return latents


class _CachedTransformer(Stage):
    """Mimi's decoder transformer with its own key-value cache, which keeps no more than the sliding window."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def start(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    def run(self, state: Any, x: Tensor, last: bool) -> Tensor:
        if not x.shape[-1]:
            return x
        y: Tensor = self.model(x.transpose(1, 2), use_cache=True, **as_keyword(self.model, state))[0]
        return y.transpose(1, 2)


def _decoder_parts(model: Any) -> tuple[list[nn.Module], nn.Module, list[nn.Module]]:
    """Upsampling, transformer and SEANet layers: recent ``transformers`` make the decoder half a model of its own."""
    half = model.decoder if hasattr(model.decoder, "decoder_seanet") else model
    layers = half.decoder_seanet.layers if half is model.decoder else half.decoder.layers
    return [half.upsample] if half.upsample is not None else [], half.decoder_transformer, list(layers)


def _load(source: str | Path) -> nn.Module:
    from transformers import MimiModel

    return load_pretrained(MimiModel, source)
