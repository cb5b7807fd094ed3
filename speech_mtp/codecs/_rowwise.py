"""What the adapters of published residual codecs share: every row is encoded and decoded by itself.

A row alone and the same row among others are therefore the same bits, whatever its neighbours do. The price
is that rows are not batched: ``B`` rows cost ``B`` runs of the model. Everything runs in float32.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils import parametrize

from speech_mtp import plugins
from speech_mtp.codecs._stages import Stage
from speech_mtp.codecs.base import Codec
from speech_mtp.types import Codes


@dataclass
class RowState:
    """One utterance on its way: the state of the decoder's stages, frames taken and samples given so far.

    ``end [1, D, 0]`` is the empty input that ends the utterance, None while it has no frame.
    """

    stages: Any
    frames: int = 0
    samples: int = 0
    end: Tensor | None = None


@dataclass
class RowStates:
    """The slots of a decoding state; None is a free slot. ``copy.deepcopy`` forks it."""

    rows: list[RowState | None]


class RowwiseCodec(Codec):
    """Subclasses set ``spec``, ``model`` and ``decoder`` and implement ``_encode_row`` and ``_latents``."""

    model: Any
    decoder: Stage

    @abstractmethod
    def _encode_row(self, wave: Tensor) -> Tensor:
        """``wave [1, 1, S]`` with S > 0 -> codes ``[K, ceil(S / samples_per_frame)]``."""

    @abstractmethod
    def _latents(self, frames: Tensor) -> Tensor:
        """``frames [1, K, F]`` with F > 0 -> the decoder's input ``[1, D, F]``."""

    def to_config(self) -> dict[str, object]:
        """The configuration of the ``transformers`` model, and how many of its codebooks are used."""
        model = json.loads(self.model.config.to_json_string(use_diff=False))
        return {"model": model, "num_codebooks": self.spec.num_streams}

    @classmethod
    def from_config(cls, entries: dict[str, Any]) -> Self:
        from transformers import AutoConfig, AutoModel

        config = AutoConfig.for_model(**entries["model"])
        return cls(AutoModel.from_config(config), num_codebooks=entries["num_codebooks"])

    @torch.no_grad()
    def encode(self, wave: Tensor, lengths: Tensor | None = None, timbre: Tensor | None = None) -> Codes:
        """``wave [B, 1, S]`` float in [-1, 1], ``lengths [B]`` in samples -> codes, row by row.

        Raises ``ValueError`` for another shape or for lengths outside 0..S.
        """
        if wave.ndim != 3 or wave.shape[1] != 1:
            raise ValueError(f"The waveform has shape {tuple(wave.shape)}; give mono audio as [rows, 1, samples].")
        rows, hop = wave.shape[0], self.spec.samples_per_frame
        samples = [wave.shape[-1]] * rows if lengths is None else [int(n) for n in lengths]
        if len(samples) != rows or any(not 0 <= n <= wave.shape[-1] for n in samples):
            raise ValueError(
                f"lengths are {samples}; give one of 0 to {wave.shape[-1]} samples for each of {rows} rows."
            )
        counts = torch.tensor([-(-n // hop) for n in samples], device=wave.device)
        frames = torch.zeros(rows, self.spec.num_streams, max([0, *counts.tolist()]), dtype=torch.int64)
        frames = frames.to(wave.device)
        for b, n in enumerate(samples):
            if n:
                frames[b, :, : int(counts[b])] = self._encode_row(wave[b : b + 1, :, :n].float())
        return Codes(frames, counts)

    def open(self, slots: int) -> RowStates:
        """A state of ``slots`` free rows."""
        return RowStates([None] * slots)

    def reset(self, state: RowStates, rows: Tensor, timbre: Tensor | None) -> None:
        """Start new utterances in ``rows [R]``; ``timbre`` must be None, these codecs have none."""
        if timbre is not None:
            raise ValueError(f"The codec {type(self).__name__} has no timbre; pass timbre=None.")
        for row in rows.tolist():
            state.rows[row] = RowState(self.decoder.start())

    @torch.no_grad()
    def push(self, state: RowStates, frames: Tensor, lengths: Tensor) -> list[Tensor]:
        """Decode ``frames [slots, K, F]``, the first ``lengths [slots]`` of each row; one ``[S_b]`` per slot.

        Raises ``ValueError`` for shapes that do not fit, codes outside their codebook, and frames for a free slot.
        """
        slots, streams = len(state.rows), self.spec.num_streams
        if frames.ndim != 3 or frames.shape[:2] != (slots, streams) or lengths.shape != (slots,):
            raise ValueError(f"frames have shape {tuple(frames.shape)}; this state takes [{slots}, {streams}, frames].")
        for row, n in enumerate(lengths.tolist()):
            if not 0 <= n <= frames.shape[-1]:
                raise ValueError(f"Row {row} counts {n} of {frames.shape[-1]} frames; give 0 to {frames.shape[-1]}.")
            if n:
                self._check(state, row, frames[row, :, :n])
        return [self._push_row(state, row, frames[row : row + 1, :, :n]) for row, n in enumerate(lengths.tolist())]

    @torch.no_grad()
    def flush(self, state: RowStates, rows: Tensor) -> list[Tensor]:
        """The last samples of ``rows [R]``, which become free slots. ``ValueError`` for a slot that is free already."""
        return [self._flush_row(state, row) for row in rows.tolist()]

    def _push_row(self, state: RowStates, row: int, frames: Tensor) -> Tensor:
        if not frames.shape[-1]:
            return self._silence()
        own = _occupied(state, row)
        latents = self._latents(frames)
        wave = self.decoder.run(own.stages, latents, last=False)[0, 0]
        own.end = latents[..., :0].clone()
        own.frames += frames.shape[-1]
        own.samples += wave.shape[-1]
        return wave

    def _flush_row(self, state: RowStates, row: int) -> Tensor:
        own = _occupied(state, row)
        state.rows[row] = None
        if own.end is None:
            return self._silence()
        wave = self.decoder.run(own.stages, own.end, last=True)[0, 0]
        missing = own.frames * self.spec.samples_per_frame - own.samples - wave.shape[-1]
        return nn.functional.pad(wave, (0, missing))  # DAC's odd strides end a few samples early

    def _check(self, state: RowStates, row: int, frames: Tensor) -> None:
        _occupied(state, row)
        low, high = frames.amin(-1).tolist(), frames.amax(-1).tolist()
        for k, size in enumerate(self.spec.codebook_sizes):
            if low[k] < 0 or high[k] >= size:
                raise ValueError(
                    f"Row {row} has codes from {low[k]} to {high[k]} in stream {k}; they must lie in 0 to {size - 1}."
                )

    def _silence(self) -> Tensor:
        return torch.zeros(0, device=next(self.parameters()).device)


@dataclass(frozen=True)
class Quantiser:
    """Residual ``books`` of a codec, by their numbers, between ``enter`` and ``leave``, which map ``[B, D, F]``."""

    books: tuple[int, ...]
    enter: nn.Module
    leave: nn.Module


class TrainableCodec(RowwiseCodec):
    """A codec of waveforms, the parts of which can be trained (:mod:`speech_mtp.training.waveform_codec`)."""

    @classmethod
    def from_sizes(cls, sizes: dict[str, Any]) -> Self:
        """One with random weights; ``sizes`` are settings of its ``transformers`` configuration. Raises ``ValueError``
        for one that there is not."""
        from transformers import AutoConfig

        kind = cls.__module__.rpartition(".")[2]
        known = AutoConfig.for_model(kind).to_dict()
        wrong = [key for key in sizes if key not in known]
        if wrong:
            raise ValueError(f"The codec {kind} has no setting model.{wrong[0]}; {plugins.nearest(wrong[0], known)}.")
        try:
            made = cls.from_config({"model": {"model_type": kind, **sizes}, "num_codebooks": None})
        except Exception as error:  # whatever transformers makes of its settings
            raise ValueError(
                f"The codec {kind} cannot be made of these sizes (model): {_first_sentence(error)}"
            ) from error
        if not made.spec.num_streams:
            raise ValueError(f"The codec {kind} of these sizes (model) has no codebook; give more of them.")
        return made

    @abstractmethod
    def latents(self, wave: Tensor) -> Tensor:
        """``wave [B, 1, S]``, S whole frames -> vectors before quantisation ``[B, D, F]``."""

    @property
    @abstractmethod
    def quantisers(self) -> list[Quantiser]:
        """Whose values add up to what is decoded; the first one's first book is codebook 0."""

    @property
    @abstractmethod
    def dim_book(self) -> int:
        """Numbers of a code's vector."""

    @abstractmethod
    def book(self, number: int) -> Tensor:
        """The vectors of codebook ``number``, ``[size, dim_book]``."""

    @abstractmethod
    def set_book(self, number: int, vectors: Tensor) -> None:
        """Give codebook ``number`` the ``vectors [size, dim_book]``."""

    @abstractmethod
    def sound(self, latents: Tensor) -> Tensor:
        """Quantised vectors ``[B, D, F]`` -> ``[B, 1, S]``."""


def _occupied(state: RowStates, row: int) -> RowState:
    own = state.rows[row]
    if own is None:
        raise ValueError(f"Slot {row} holds no utterance; reset it first.")
    return own


def pick_streams(available: int, wanted: int | None, least: int = 1) -> int:
    """How many codebooks to use: all that are available, or the first ``wanted``. ``ValueError`` if there are fewer."""
    if wanted is None:
        return available
    if not least <= wanted <= available:
        raise ValueError(f"num_codebooks is {wanted}; this model allows {least} to {available}.")
    return wanted


def ready_model(source: str | Path | nn.Module, load: Callable[[str | Path], nn.Module]) -> Any:
    """``source`` itself if it is a model, otherwise what ``load`` reads there; float32, weight norm folded."""
    model = (source if isinstance(source, nn.Module) else load(source)).float().eval()
    fold_weight_norm(model)
    return model


def load_pretrained(model_class: Any, source: str | Path) -> nn.Module:
    """A ``transformers`` model in float32 from a local folder or hub id, from safetensors only.

    Raises ``FileNotFoundError`` for a folder that is not there, ``OSError`` when the files cannot be fetched, and
    ``ValueError`` when they are damaged, lack weights or belong to another kind of model.
    """
    config = read_config(model_class.config_class, source)
    try:
        model, info = model_class.from_pretrained(
            source, config=config, use_safetensors=True, dtype=torch.float32, output_loading_info=True
        )
    except SafetensorError as error:
        raise ValueError(f"The weights in {str(source)!r} are damaged ({error}); download them again.") from error
    except OSError as error:
        raise OSError(f"No safetensors weights in {str(source)!r}: {_first_sentence(error)}") from error
    if info["missing_keys"]:
        raise ValueError(f"The weights in {str(source)!r} lack {min(info['missing_keys'])!r}; they are not complete.")
    loaded: nn.Module = model.eval()
    return loaded


def read_config(config_class: Any, source: str | Path) -> Any:
    """The ``config.json`` of a local folder or hub id. Errors as for :func:`load_pretrained`."""
    if str(source).startswith((".", "/", "~")) and not Path(source).is_dir():
        raise FileNotFoundError(f"There is no folder {str(source)!r}; give a model folder or a hub id.")
    try:
        found, _ = config_class.get_config_dict(source)
    except OSError as error:
        raise OSError(f"No config.json in {str(source)!r}: {_first_sentence(error)}") from error
    if not found:
        raise FileNotFoundError(f"There is no config.json in {str(source)!r}; give a model folder or a hub id.")
    if found.get("model_type") != config_class.model_type:
        raise ValueError(f"{str(source)!r} holds a {found.get('model_type')!r} model, not {config_class.model_type!r}.")
    return config_class.from_dict(found)


def _first_sentence(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def fold_weight_norm(model: nn.Module) -> None:
    """Replace weight normalisation, in either of PyTorch's forms, by the weights that it stands for."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight")
        elif hasattr(module, "weight_g"):
            nn.utils.remove_weight_norm(module)


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> None:
    """Draw weights, biases and codebooks from ``seed``, so that an untrained model gives sound and uses its codes."""
    rng = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("alpha"):  # Snake divides by it
            continue
        if tensor.ndim >= 2:
            scale = 1.0 if "codebook" in name else tensor[0].numel() ** -0.5
            tensor.copy_(torch.randn(tensor.shape, generator=rng) * scale)
        elif "bias" in name:
            tensor.copy_(torch.randn(tensor.shape, generator=rng) * 0.1)
