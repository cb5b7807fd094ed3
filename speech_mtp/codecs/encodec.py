"""EnCodec (Défossez et al. 2022, arXiv 2210.13438), the causal mono model: 24 kHz, 75 frames per second.

Two implementations behind one class: ``transformers.EncodecModel``, and the package ``encodec`` of the authors
(CC BY-NC 4.0). Both read the same safetensors files. Streaming is exact: the LSTM carries its state and each
convolution its past; because the first convolution mirrors its start, the first sound waits for 7 frames.

Not supported, and refused: the 48 kHz stereo model, whose normalisation looks at the whole utterance.
"""

from __future__ import annotations

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from speech_mtp.codecs._rowwise import (
    Quantiser,
    TrainableCodec,
    load_pretrained,
    pick_streams,
    randomise,
    read_config,
    ready_model,
)
from speech_mtp.codecs._stages import seanet
from speech_mtp.types import CodecSpec

Backend = Literal["transformers", "encodec"]


class Encodec(TrainableCodec):
    """EnCodec from ``source``: a folder or hub id with safetensors (``facebook/encodec_24khz``), or a ready model.

    ``num_codebooks`` keeps the first so many of the residual codebooks (default: all; 8 are 6 kbit/s).
    A ready model is taken over: its weight normalisation is folded into its weights.
    """

    def __init__(
        self, source: str | Path | nn.Module, backend: Backend = "transformers", num_codebooks: int | None = None
    ) -> None:
        super().__init__()
        if backend not in ("transformers", "encodec"):
            raise ValueError(f"The EnCodec backend is {backend!r}; choose 'transformers' or 'encodec'.")
        load = _load_transformers if backend == "transformers" else _load_package
        self.model = ready_model(source, load)
        sample_rate, hop, channels, normalize = _facts(self.model, backend)
        if channels != 1 or normalize or any(isinstance(m, nn.GroupNorm) for m in self.model.modules()):
            raise ValueError("This EnCodec model is stereo or normalises whole utterances; use the mono 24 kHz model.")
        transformers = backend == "transformers"
        # A list, so that a checkpoint holds these weights once.
        self.quantizers: list[Any] = list(
            self.model.quantizer.layers if transformers else self.model.quantizer.vq.layers
        )
        size = self.model.quantizer.codebook_size if transformers else self.model.quantizer.bins
        self.decoder = seanet(self.model.decoder.layers if transformers else self.model.decoder.model)
        streams = pick_streams(len(self.quantizers), num_codebooks)
        self.spec = CodecSpec(sample_rate, sample_rate / hop, {"codebooks": slice(0, streams)}, (size,) * streams)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, backend: Backend = "transformers", num_codebooks: int | None = None
    ) -> Encodec:
        """The model in a local folder or on the hub (``config.json`` and ``model.safetensors``)."""
        return cls(source, backend, num_codebooks)

    @classmethod
    def tiny(cls, backend: Backend = "transformers") -> Encodec:
        """A random model of 8 samples per frame and 3 codebooks of 16, for tests. Downloads nothing."""
        from transformers import EncodecConfig, EncodecModel

        config = EncodecConfig(
            hidden_size=8, num_filters=4, upsampling_ratios=[4, 2], codebook_size=16, target_bandwidths=[36.0]
        )
        model = EncodecModel(config)
        randomise(model)
        return cls(model if backend == "transformers" else _package_model(config, model.state_dict()), backend)

    def to_config(self) -> dict[str, object]:
        if not hasattr(self.model, "config"):
            raise ValueError("EnCodec of the package encodec cannot be saved here; use the same one of transformers.")
        return super().to_config()

    def latents(self, wave: Tensor) -> Tensor:
        out: Tensor = self.model.encoder(wave)
        return out

    @property
    def quantisers(self) -> list[Quantiser]:
        same = nn.Identity()
        return [Quantiser(tuple(range(self.spec.num_streams)), same, same)]

    @property
    def dim_book(self) -> int:
        return int(self.model.config.codebook_dim)

    def book(self, number: int) -> Tensor:
        found: Tensor = self.quantizers[number].codebook.embed
        return found

    def set_book(self, number: int, vectors: Tensor) -> None:
        self.quantizers[number].codebook.embed.copy_(vectors)

    def sound(self, latents: Tensor) -> Tensor:
        out: Tensor = self.model.decoder(latents)
        return out

    def _encode_row(self, wave: Tensor) -> Tensor:
        residual, codes = self.model.encoder(wave), []
        for quantizer in self.quantizers[: self.spec.num_streams]:
            codes.append(quantizer.encode(residual))
            residual = residual - quantizer.decode(codes[-1])
        return torch.cat(codes)

    def _latents(self, frames: Tensor) -> Tensor:
        latents = [q.decode(codes) for q, codes in zip(self.quantizers, frames.unbind(1), strict=False)]
        return torch.stack(latents).sum(0)


def _facts(model: Any, backend: Backend) -> tuple[int, int, int, bool]:
    """Sample rate, samples per frame, channels, and whether the loudness is normalised."""
    if backend == "transformers":
        config = model.config
        return config.sampling_rate, config.hop_length, config.audio_channels, config.normalize
    return model.sample_rate, int(model.encoder.hop_length), model.channels, model.normalize


def _load_transformers(source: str | Path) -> nn.Module:
    from transformers import EncodecModel

    return load_pretrained(EncodecModel, source)


def _load_package(source: str | Path) -> nn.Module:
    from transformers import EncodecConfig
    from transformers.utils import cached_file

    config = read_config(EncodecConfig, source)
    try:
        weights = load_file(str(cached_file(source, "model.safetensors")))
    except SafetensorError as error:
        raise ValueError(f"The weights in {str(source)!r} are damaged ({error}); download them again.") from error
    except OSError as error:
        raise OSError(
            f"There is no model.safetensors in {str(source)!r}; EnCodec is read from safetensors only."
        ) from error
    return _package_model(config, weights)


def _package_model(config: Any, weights: dict[str, Tensor]) -> nn.Module:
    """The package's model of the same shape as ``config``, with weights named as in either implementation."""
    package: Any = import_module("encodec.model")  # pulls in an old audio stack, so only when asked for

    weights = {_plain_weight_norm(name): weight for name, weight in weights.items()}
    shape = {
        "channels": config.audio_channels,
        "dimension": config.hidden_size,
        "n_filters": config.num_filters,
        "n_residual_layers": config.num_residual_layers,
        "ratios": list(config.upsampling_ratios),
        "norm": config.norm_type,
        "kernel_size": config.kernel_size,
        "last_kernel_size": config.last_kernel_size,
        "residual_kernel_size": config.residual_kernel_size,
        "dilation_base": config.dilation_growth_rate,
        "causal": config.use_causal_conv,
        "pad_mode": config.pad_mode,
        "true_skip": not config.use_conv_shortcut,
        "compress": config.compress,
        "lstm": config.num_lstm_layers,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the package uses PyTorch's older weight normalisation
        encoder = package.m.SEANetEncoder(**shape)
        decoder = package.m.SEANetDecoder(**shape, trim_right_ratio=config.trim_right_ratio)
    model: nn.Module = package.EncodecModel(
        encoder,
        decoder,
        package.qt.ResidualVectorQuantizer(config.hidden_size, config.num_quantizers, config.codebook_size),
        list(config.target_bandwidths),
        config.sampling_rate,
        config.audio_channels,
        normalize=config.normalize,
    )
    named = {name: weights.get(_transformers_name(name), weights.get(name)) for name in model.state_dict()}
    missing = [name for name, weight in named.items() if weight is None]
    if missing:
        raise ValueError(f"The weights lack {missing[0]!r}; they are not a complete EnCodec model.")
    model.load_state_dict(named)
    return model


def _transformers_name(name: str) -> str:
    """The package's ``decoder.model.3.convtr.convtr.weight_g`` -> ``decoder.layers.3.conv.weight_g``."""
    renamed = {".model.": ".layers.", ".convtr.convtr.": ".conv.", ".conv.conv.": ".conv."}
    renamed |= {".vq.layers.": ".layers.", "._codebook.": ".codebook."}
    for ours, theirs in renamed.items():
        name = name.replace(ours, theirs)
    return name


def _plain_weight_norm(name: str) -> str:
    """PyTorch's newer names of weight normalisation -> the older ones, which the published files use."""
    name = name.replace("parametrizations.weight.original0", "weight_g")
    return name.replace("parametrizations.weight.original1", "weight_v")
