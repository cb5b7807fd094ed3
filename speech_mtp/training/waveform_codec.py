"""Training of codecs that hear and make waveforms: EnCodec's and Mimi's shapes.

Crops are coded and decoded again. Besides the terms of every codec (:mod:`speech_mtp.training.codec_training`):

* ``books``: the encoder keeps to its codebooks, which follow it by running means (:mod:`speech_mtp.nn.ema_vq`);
* ``distil``: with a recogniser's features, the first codebook learns them, as in SpeechTokenizer and in Mimi.

The published ones were trained for weeks with critics; here they get what the other codecs of a study get.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from speech_mtp.codecs._rowwise import TrainableCodec
from speech_mtp.nn.ema_vq import EmaBook, quantised
from speech_mtp.nn.spectral import LogMel
from speech_mtp.training.codec_data import CodecBatch, check_heeded, cut
from speech_mtp.training.codec_training import CodecTraining
from speech_mtp.training.precision import mixed

UNHEEDED = ("warp", "warp_share", "views", "ctc_prior", "keep_codes", "predicted_share", "drop_detail", "reference_s")
UNHEEDED_TERMS = (
    "near",
    "frame",
    "energy",
    "adversary",
    "consistency",
    "codes",
    "spread",
    "heard",
    "said",
    "ctc",
    "pitch",
    "voicing",
)


class WaveformTask(CodecTraining):
    """Trains a :class:`TrainableCodec`. Raises ``ValueError`` for settings of parts that it has not, and for several
    processes, each of which would fill codebooks of its own."""

    codec: TrainableCodec

    def check(self, codec: TrainableCodec) -> None:
        why = "A codec of waveforms has no streams with roles, and no pitch"
        check_heeded(self.config, UNHEEDED, UNHEEDED_TERMS, why)
        if self.workers.count > 1:
            raise ValueError("Codebooks that follow their vectors are trained in one process; start one only.")

    def make_helpers(self, voices: int) -> dict[str, nn.Module]:
        books = [EmaBook(size, self.codec.dim_book) for size in self.codec.spec.codebook_sizes]
        for number, book in enumerate(books):
            known = self.codec.book(number)
            if known.any():  # the codec was trained before
                book.place(known)
        return {"books": nn.ModuleList(books)}

    @property
    def dim_distilled(self) -> int:
        return self.codec.dim_book

    @cached_property
    def mel(self) -> LogMel:
        return LogMel(self.codec.spec.sample_rate, 1024, 240, 80).to(self.device)

    def terms(self, batch: CodecBatch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """1. Cut the crop out. 2. Quantise what the encoder makes of it; the books learn. 3. Decode and compare."""
        frames, size = self.config.crop_frames, self.codec.spec.samples_per_frame
        real = cut(batch.wave, batch.crop * size, frames * size)
        with mixed(self.config.amp, self.device):
            latents = self.codec.latents(real[:, None]).float()
        values, first, commitment = self._quantised(latents)
        features = batch.tracks.get("features")
        if features is not None:
            features = cut(features, batch.crop, frames)
        terms = {"books": commitment}
        terms |= self._distilled(first.transpose(1, 2), features, torch.ones_like(first[:, :1].transpose(1, 2)))
        with mixed(self.config.amp, self.device):
            fake = self.codec.sound(values)[:, 0, : frames * size].float()
        return terms | self.spectral_terms(fake, real), fake, real

    def _quantised(self, latents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``latents [B, D, F]`` -> the sum of all quantisers ``[B, D, F]``, the values of the first codebook
        ``[B, dim_book, F]``, and the commitment."""
        learn = torch.is_grad_enabled()
        books = cast(nn.ModuleList, self.helpers["books"])
        outputs, firsts, losses = [], [], []
        for quantiser in self.codec.quantisers:
            own = [cast(EmaBook, books[number]) for number in quantiser.books]
            parts, loss = quantised(own, quantiser.enter(latents), learn)
            outputs.append(quantiser.leave(torch.stack(parts).sum(0)))
            firsts.append(parts[0])
            losses.append(loss)
        if learn:
            self._place_books()
        return torch.stack(outputs).sum(0), firsts[0], torch.stack(losses).mean()

    def _place_books(self) -> None:
        for codec in self._codecs():
            for number, book in enumerate(cast(nn.ModuleList, self.helpers["books"])):
                codec.set_book(number, cast(EmaBook, book).vectors)

    def _codecs(self) -> Iterator[TrainableCodec]:
        yield self.codec
        if "average" in self.modules:
            yield cast(TrainableCodec, self.modules["average"])
