"""Training of codecs with the source-filter decoder: what does not depend on how a codec codes.

Whole utterances are encoded, a crop is decoded with the true pitch, and spectra are compared. The total is a weighted
sum of named terms (weights in the recipe):

* ``stft``, ``convergence``: multi-resolution spectra of the crop;
* ``mel``: L1 of log-mel spectra of that crop; ``multiscale``: the same at several window sizes;
* ``heard``: L1 of what the codec's own encoder, held still, makes of the decoded and of the true crop, so that the
  decoder spends its effort on what the encoder tells apart;
* ``pitch``, ``voicing``: the pitch that the decoder predicts, which is all the pitch it has in use;
* ``critic``, ``feature``: optional multi-resolution spectrogram critics (least-squares GAN, feature matching).

Subclasses add terms of their codes.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp.codecs._source_filter import FrameEncoder, SourceFilterCodec
from speech_mtp.corpus.features import Features
from speech_mtp.corpus.store import AudioStore
from speech_mtp.evaluation.code_usage import code_usage, count_codes
from speech_mtp.nn.critics import SpectrogramCritics, critic_loss, generator_loss
from speech_mtp.nn.ctc import Prior, ctc
from speech_mtp.nn.source_filter import Pitch
from speech_mtp.nn.spectral import MultiScaleMel, SpectralLoss
from speech_mtp.training.averaging import average_of, update
from speech_mtp.training.base import Task
from speech_mtp.training.codec_data import CodecBatch, CodecData, CodecTaskConfig, cut
from speech_mtp.training.device_data import DeviceAudio, DeviceCodecData
from speech_mtp.training.distilling import TERM, FeatureGuess, check, distillation
from speech_mtp.training.distributed import Workers
from speech_mtp.training.precision import mixed


class SourceFilterTask(Task):
    """Trains ``codec``. ``config.keep_codes`` trains its decoder alone."""

    def __init__(
        self,
        codec: SourceFilterCodec,
        store: AudioStore,
        config: CodecTaskConfig,
        device: torch.device,
        workers: Workers | None = None,
        features: Features | None = None,
    ) -> None:
        check(config.weights.distil, features)
        self.workers = workers or Workers()
        self.codec = codec.to(device).train()
        self.config, self.device = config, device
        self.data: CodecData | DeviceCodecData
        self.dev_data: CodecData | DeviceCodecData
        if config.on_device:
            if features is not None:
                raise ValueError(
                    "Audio on the device comes without features (run.features); set task.on_device to false."
                )
            audio = DeviceAudio(store, device)
            self.data, self.dev_data = (DeviceCodecData(audio, codec, config, split) for split in ("train", "dev"))
        else:
            self.data, self.dev_data = (CodecData(store, codec, config, split, features) for split in ("train", "dev"))
        helpers = self.make_helpers(len(self.data.voices))
        if features is not None:
            helpers[TERM] = FeatureGuess(self.dim_distilled, features.dim)
        self.helpers = nn.ModuleDict(helpers).to(device)
        self.modules = {"codec": self.codec, "helpers": self.helpers}
        if config.keep_codes:
            self.codec.requires_grad_(False).eval()
            self.codec.decoder.requires_grad_(True).train()
            parameters = list(self.codec.decoder.parameters())
        else:
            parameters = [*self.codec.parameters(), *self.helpers.parameters()]
        self.optimizers = {"codec": torch.optim.AdamW(parameters, betas=(0.8, 0.98), weight_decay=0.01, fused=True)}
        self.spectral = SpectralLoss().to(device)
        self.multiscale = MultiScaleMel(codec.config.sample_rate).to(device)
        if config.ema:
            self.modules["average"] = average_of(self.codec)
        if config.weights.critic:
            self.critics = SpectrogramCritics(width=config.critics.width).to(device)
            self.modules["critics"] = self.critics
            self.optimizers["critics"] = torch.optim.AdamW(self.critics.parameters(), betas=(0.8, 0.98), fused=True)

    @abstractmethod
    def make_helpers(self, voices: int) -> dict[str, nn.Module]:
        """Modules that training needs beside the codec; ``voices`` are told apart by the data."""

    @property
    @abstractmethod
    def dim_distilled(self) -> int:
        """Numbers a frame of the values that learn from a recogniser's features."""

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

    def step(self, number: int, learning_rate: float) -> dict[str, Tensor]:
        batch = self.data.batch(self.workers.batch_number(number)).to(self.device)
        terms, fake, real = self.terms(batch)
        due = number >= self.config.critic_from and number % self.config.critics.every == 0
        scalars: dict[str, Tensor] = {}
        if self.config.weights.critic > 0 and due:
            fake, real, only = self._judged(fake, real, number)
            loss = critic_loss(self.critics, fake.detach(), real, only)
            scalars["critics"] = self._update("critics", loss, learning_rate)
            terms["critic"], terms["feature"] = generator_loss(self.critics, fake, real, only)
        total = torch.stack([getattr(self.config.weights, k) * v for k, v in terms.items()]).sum()
        scalars["loss"] = self._update("codec", total, learning_rate)
        if self.config.ema:
            update(self.modules["average"], self.codec, self.config.ema, number)
        return scalars | {k: v.detach() for k, v in terms.items()}

    def _judged(self, fake: Tensor, real: Tensor, number: int) -> tuple[Tensor, Tensor, int | None]:
        """What the critics see in step ``number``: a part of both crops ``[B, S]``, and which critic (None: all)."""
        c = self.config.critics
        size = c.crop_frames * self.codec.spec.samples_per_frame or fake.shape[1]
        start = int(torch.randint(fake.shape[1] - size + 1, ()))
        only = number // c.every % len(self.critics.critics) if c.one else None
        return fake[:, start : start + size], real[:, start : start + size], only

    def _update(self, name: str, loss: Tensor, learning_rate: float) -> Tensor:
        optimizer = self.optimizers[name]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for g in optimizer.param_groups for p in g["params"]]
        self.workers.average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        return loss.detach()

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
        fake, real, pitch_terms = self.decode_crop(batch, content, prosody, timbre)
        terms |= pitch_terms
        terms["stft"], terms["convergence"] = self.spectral(fake, real)
        terms["mel"] = F.l1_loss(codec.mel(fake), codec.mel(real))
        if c.weights.multiscale:
            terms["multiscale"] = self.multiscale(fake, real)
        if c.weights.heard:
            with torch.no_grad():
                expected = self.heard(real)
            terms["heard"] = (self.heard(fake) - expected).abs().mean()
        return terms, fake, real

    def _distilled(self, values: Tensor, batch: CodecBatch, mask: Tensor) -> dict[str, Tensor]:
        """What ``values [B, F, D]`` learn of the batch's features, where there are some."""
        if batch.features is None:
            return {}
        return {TERM: distillation(self.helpers[TERM](values), batch.features, mask)}

    def _phonemes_said(self, name: str, log_probs: Tensor, batch: CodecBatch, mask: Tensor) -> Tensor:
        """The loss of the phonemes of the batch under ``log_probs [B, F, V]`` of the head ``name``."""
        scores = None
        if self.config.ctc_prior:
            prior = cast(Prior, self.helpers[f"{name}_prior"])
            if torch.is_grad_enabled():
                prior.update(log_probs, mask)
            scores = prior.scores(self.config.ctc_prior)
        return ctc(log_probs, batch.phonemes, batch.frames, batch.phoneme_lengths, scores)

    def heard(self, crop: Tensor) -> Tensor:
        """The ear's inner vectors of ``crop [B, S]``, ``[B, F, D]``; its weights get no gradient."""
        lengths = torch.full((len(crop),), crop.shape[1], device=crop.device)
        encoder = self.ear
        still = {name: value.detach() for name, value in encoder.named_parameters()}
        with mixed(self.config.amp, self.device):
            inner = torch.func.functional_call(encoder, still, self.features_of_ear(crop, lengths), {"inner": True})
        return torch.as_tensor(inner).float()

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

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The terms on fixed batches of sentences that are never trained on, what else is :meth:`measured` of them, and
        how many codes of each stream are in effective use."""
        torch.manual_seed(0)
        sums: dict[str, float] = {}
        counts: list[list[Tensor]] = []
        trained, self.codec = self.codec, self._result()
        for number in range(4):
            batch = self.dev_data.batch(number).to(self.device)
            terms: dict[str, Any] = self.terms(batch)[0]
            terms |= self.measured(batch)
            codes = self.codec.encode(batch.wave[:, None], batch.lengths)
            counts.append(count_codes(codes, self.codec.spec.codebook_sizes))
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + float(value) / 4
        for name, found in zip(self.codec.spec.streams, zip(*counts, strict=True), strict=True):
            sums[f"{name}_perplexity"] = code_usage(torch.stack(found).sum(0)).perplexity
        self.codec = trained
        return sums

    def measured(self, batch: CodecBatch) -> dict[str, Any]:
        """More figures of a batch that is held out."""
        return {}

    def _result(self) -> SourceFilterCodec:
        """The codec that is evaluated and exported: the average of the weights, or the last ones."""
        return cast(SourceFilterCodec, self.modules.get("average", self.codec))

    def export(self, folder: Path) -> None:
        from speech_mtp.hub import save_codec

        save_codec(self._result(), folder, dtype="fp32")


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
