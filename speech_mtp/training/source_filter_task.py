"""Training of codecs with the source-filter decoder: what does not depend on how a codec codes.

Whole utterances are encoded, a crop is decoded with the true pitch, and spectra are compared. Besides the terms of
every codec (:mod:`speech_mtp.training.codec_training`):

* ``heard``: L1 of what the codec's own encoder, held still, makes of the decoded and of the true crop, so that the
  decoder spends its effort on what the encoder tells apart;
* ``pitch``, ``voicing``: the pitch that the decoder predicts, which is all the pitch it has in use.

Subclasses add terms of their codes.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp.codecs._source_filter import FrameEncoder, SourceFilterCodec
from speech_mtp.nn.ctc import Prior, ctc
from speech_mtp.nn.source_filter import Pitch
from speech_mtp.nn.spectral import LogMel
from speech_mtp.training.codec_data import CodecBatch, cut
from speech_mtp.training.codec_training import CodecTraining
from speech_mtp.training.precision import mixed


def still(module: nn.Module | None, *inputs: Tensor, **more: object) -> Tensor:
    """What ``module`` gives; its weights get no gradient."""
    assert module is not None
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    return torch.as_tensor(torch.func.functional_call(module, weights, inputs, more))


class SourceFilterTask(CodecTraining):
    """Trains ``codec``. ``config.keep_codes`` trains its decoder alone."""

    codec: SourceFilterCodec

    def trained(self) -> list[nn.Parameter]:
        if not self.config.keep_codes:
            return super().trained()
        self.codec.requires_grad_(False).eval()
        self.codec.decoder.requires_grad_(True).train()
        return list(self.codec.decoder.parameters())

    @property
    def mel(self) -> LogMel:
        return self.codec.mel

    @abstractmethod
    def encode(self, batch: CodecBatch, timbre: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """What the decoder reads of the batch's codes, as content and as prosody ``[B, F, D]``, and their terms."""

    @abstractmethod
    def timbre(self, batch: CodecBatch) -> Tensor:
        """What the decoder reads as timbre ``[B, E]``."""

    @property
    @abstractmethod
    def ear(self) -> FrameEncoder:
        """The encoder that judges decoded sound by its inner vectors."""

    @abstractmethod
    def features_of_ear(self, crop: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """What :attr:`ear` reads of ``crop [B, S]``, ``[B, 4F, D]``, and its mask."""

    def terms(self, batch: CodecBatch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Named loss terms, and the decoded and the true crop ``[B, S]``.

        1. encode whole utterances, 2. terms of the codes on whole utterances, 3. decode a crop with the true pitch,
        4. compare spectra.
        """
        codec, c = self.codec, self.config
        timbre = self.timbre(batch)
        terms: dict[str, Tensor] = {}
        if c.keep_codes:
            content, prosody = codec.values(codec.encode(batch.wave[:, None], batch.lengths).frames)
        else:
            content, prosody, terms = self.encode(batch, timbre)
        fake, real, pitch_terms = self.decode_crop(batch, self.decoded(content), prosody, timbre)
        terms |= pitch_terms
        terms |= self.spectral_terms(fake, real)
        if c.weights.heard:
            with torch.no_grad():
                expected = self.heard(real)
            terms["heard"] = (self.heard(fake) - expected).abs().mean()
        return terms | self.sound_terms(fake, content, batch.crop), fake, real

    def sound_terms(self, fake: Tensor, content: Tensor, crop: Tensor) -> dict[str, Tensor]:
        """More terms of decoded crops ``fake [B, S]``, which begin at frame ``crop [B]`` of ``content [B, F, D]``."""
        return {}

    def decoded(self, content: Tensor) -> Tensor:
        """What the decoder is given of ``content [B, F, D]``."""
        return content

    def _phonemes_said(self, name: str, log_probs: Tensor, batch: CodecBatch, mask: Tensor) -> Tensor:
        """The loss of the phonemes of the batch under ``log_probs [B, F * n, V]`` of the head ``name``, which has n in
        each of the frames of ``mask [B, F, 1]``."""
        scores, each = None, log_probs.shape[1] // mask.shape[1]
        if self.config.ctc_prior:
            prior = cast(Prior, self.helpers[f"{name}_prior"])
            if torch.is_grad_enabled():
                prior.update(log_probs, mask.repeat_interleave(each, 1))
            scores = prior.scores(self.config.ctc_prior)
        return ctc(log_probs, batch.phonemes, batch.frames * each, batch.phoneme_lengths, scores)

    def heard(self, crop: Tensor) -> Tensor:
        """The ear's inner vectors of ``crop [B, S]``, ``[B, F, D]``; its weights get no gradient."""
        lengths = torch.full((len(crop),), crop.shape[1], device=crop.device)
        with mixed(self.config.amp, self.device):
            return still(self.ear, *self.features_of_ear(crop, lengths), inner=True).float()

    def decode_crop(
        self, batch: CodecBatch, content: Tensor, prosody: Tensor, timbre: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Decode ``crop_frames`` frames of each row from a fresh state: the decoded and the true crop ``[B, S]``, and
        the terms of the pitch.

        What the decoder makes of a frame comes out ``delay_samples`` later, so it reads ``flush_frames`` more than the
        crop; its pitch is that of the frame before the one that it reads. For 3 frames from frame c on::

            frame          c-1      c      c+1     c+2     c+3     c+4     c+5
                            |       |       |       |       |       |       |
            content, prosody        [-------- crop ---------|---- flush ----]
            true pitch      [----- as many frames, one earlier -----]
            raw samples             [--- delay ---|-------- fake ---------|-]
            recording               [-------- real ---------]

        1. Cut out what the decoder reads, and the pitch that belongs to it.
        2. Decode from a fresh state, which begins at the first pitch.
        3. Drop the delay, and cut the same crop out of the recording.
        """
        decoder, n, size = self.codec.decoder, self.config.crop_frames, self.codec.spec.samples_per_frame
        frames = n + decoder.flush_frames
        values = [cut(x, batch.crop, frames) for x in (content, prosody)]
        hertz = cut(batch.pitch, (batch.crop - 1) * decoder.steps, frames * decoder.steps)
        truth = Pitch(fill_unvoiced(hertz), (hertz > 0).float())

        state = decoder.open(len(content), content.device)
        state.timbre = timbre
        state.f0 = truth.log_f0[:, 0].double().exp()
        lengths = torch.full((len(content),), frames, device=content.device)
        guided = torch.rand(len(content), device=content.device) >= self.config.predicted_share
        with mixed(self.config.amp, self.device):
            raw, guess = decoder(state, *values, lengths, truth, guided)

        fake = raw[:, decoder.delay_samples :][:, : n * size]
        real = cut(batch.wave, batch.crop * size, n * size)
        return fake, real, pitch_terms(guess, truth)


def pitch_terms(guess: Pitch, truth: Pitch) -> dict[str, Tensor]:
    """``pitch``: mean absolute error in log Hz where there is a voice; ``voicing``: whether there is one."""
    error = (guess.log_f0.float() - truth.log_f0).abs() * truth.voiced
    return {
        "pitch": error.sum() / truth.voiced.sum().clamp(min=1),
        "voicing": F.binary_cross_entropy_with_logits(guess.voiced.float(), truth.voiced),
    }


def fill_unvoiced(hertz: Tensor) -> Tensor:
    """``[B, F]`` Hz with 0 where unvoiced -> log Hz, unvoiced stretches holding the last voiced value."""
    steps = torch.arange(hertz.shape[1], device=hertz.device).expand_as(hertz)
    last = torch.where(hertz > 0, steps, torch.full_like(steps, -1)).cummax(1).values
    first = torch.where(hertz > 0, steps, torch.full_like(steps, hertz.shape[1])).amin(1, keepdim=True)
    index = torch.where(last >= 0, last, first.clamp(max=hertz.shape[1] - 1))
    held = hertz.gather(1, index)
    return torch.where(held > 0, held, torch.full_like(held, 150.0)).log()
