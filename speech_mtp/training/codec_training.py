"""Training of codecs: what does not depend on how a codec codes, or on how it decodes.

The total is a weighted sum of named terms (weights in the recipe). Those of the decoded and the true crop:

* ``stft``, ``convergence``: multi-resolution spectra;
* ``mel``: L1 of log-mel spectra; ``multiscale``: the same at several window sizes;
* ``critic``, ``feature``: optional multi-resolution spectrogram critics (least-squares GAN, feature matching).

``distil`` is what a stream learns of a recogniser's features (:mod:`speech_mtp.training.distilling`). Subclasses add
terms of their codes and of their decoder.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp.codecs.base import Codec
from speech_mtp.corpus.features import Features
from speech_mtp.corpus.store import AudioStore
from speech_mtp.evaluation.code_usage import code_usage, count_codes
from speech_mtp.nn.critics import SpectrogramCritics, critic_loss, generator_loss
from speech_mtp.nn.spectral import LogMel, MultiScaleMel, SpectralLoss
from speech_mtp.training.averaging import average_of, update
from speech_mtp.training.base import Task, begin_step
from speech_mtp.training.codec_data import CodecBatch, CodecData, CodecTaskConfig
from speech_mtp.training.device_data import DeviceAudio, DeviceCodecData
from speech_mtp.training.distilling import FeatureGuess, distillation
from speech_mtp.training.distributed import Workers
from speech_mtp.training.tracks import Tracks, check_tracks


class CodecTraining(Task):
    """Trains ``codec`` on the audio of ``store``, and on what ``tracks`` tell of its frames."""

    codec: Codec

    def __init__(
        self,
        codec: Codec,
        store: AudioStore,
        config: CodecTaskConfig,
        device: torch.device,
        workers: Workers | None = None,
        tracks: Tracks | None = None,
    ) -> None:
        self.workers, self.config, self.device = workers or Workers(), config, device
        tracks = tracks or {}
        self.check(codec)
        check_tracks(tracks, config.weights, config.keep_codes, config.on_device)
        self.codec = codec.to(device).train()
        self.data: CodecData | DeviceCodecData
        self.dev_data: CodecData | DeviceCodecData
        if config.on_device:
            audio = DeviceAudio(store, device)
            self.data, self.dev_data = (DeviceCodecData(audio, codec.spec, config, split) for split in ("train", "dev"))
        else:
            self.data, self.dev_data = (
                CodecData(store, codec.spec, config, split, tracks) for split in ("train", "dev")
            )
        helpers = self.make_helpers(len(self.data.voices))
        if "features" in tracks:
            helpers["distil"] = FeatureGuess(self.dim_distilled, cast(Features, tracks["features"]).dim)
        self.helpers = nn.ModuleDict(helpers).to(device)
        self.modules = {"codec": self.codec, "helpers": self.helpers}
        self.optimizers = {"codec": torch.optim.AdamW(self.trained(), betas=(0.8, 0.98), weight_decay=0.01, fused=True)}
        self.number = 0
        """The step that is being made."""
        self.spectral = SpectralLoss().to(device)
        self.multiscale = MultiScaleMel(codec.spec.sample_rate).to(device)
        if config.ema:
            self.modules["average"] = average_of(self.codec)
        if config.weights.critic:
            if config.critics.crop_frames > config.crop_frames:
                raise ValueError(
                    f"task.critics.crop_frames is {config.critics.crop_frames}, but task.crop_frames decodes only "
                    f"{config.crop_frames}; let the critics hear no more than these."
                )
            self.critics = SpectrogramCritics(width=config.critics.width).to(device)
            self.modules["critics"] = self.critics
            group = {"params": list(self.critics.parameters()), "scale": config.critics.rate}
            self.optimizers["critics"] = torch.optim.AdamW([group], betas=(0.8, 0.98), fused=True)

    @abstractmethod
    def check(self, codec: Any) -> None:
        """Raises ``ValueError`` where ``codec`` and the settings do not fit each other. Called before anything else."""

    @abstractmethod
    def make_helpers(self, voices: int) -> dict[str, nn.Module]:
        """Modules that training needs beside the codec; ``voices`` are told apart by the data."""

    @property
    @abstractmethod
    def dim_distilled(self) -> int:
        """Numbers a frame of the values that learn from a recogniser's features."""

    @property
    @abstractmethod
    def mel(self) -> LogMel:
        """By which the term ``mel`` hears."""

    @abstractmethod
    def terms(self, batch: CodecBatch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Named loss terms, and the decoded and the true crop ``[B, S]``."""

    def trained(self) -> list[nn.Parameter]:
        """The parameters that learn."""
        return [*self.codec.parameters(), *self.helpers.parameters()]

    def step(self, number: int, learning_rate: float) -> dict[str, Tensor]:
        self.number = number
        batch = self.data.batch(self.workers.batch_number(number)).to(self.device)
        terms, fake, real = self.terms(batch)
        due = number >= self.config.critic_from and number % self.config.critics.every == 0
        scalars: dict[str, Tensor] = {}
        if self.config.weights.critic > 0 and due:
            fake, real, only = self._judged(fake, real, number)
            loss = critic_loss(self.critics, fake.detach(), real, only)
            learning = [p for critic in self.critics.due(only) for p in critic.parameters()]
            scalars["critics"] = self._update("critics", loss, learning_rate, learning)
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

    def _update(
        self, name: str, loss: Tensor, learning_rate: float, parameters: list[nn.Parameter] | None = None
    ) -> Tensor:
        """One step of ``parameters``, some of the optimizer's (None: all); the others stand still in every process."""
        optimizer = self.optimizers[name]
        begin_step(optimizer, learning_rate)
        loss.backward()
        if parameters is None:
            parameters = [p for g in optimizer.param_groups for p in g["params"]]
        self.workers.average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        return loss.detach()

    def spectral_terms(self, fake: Tensor, real: Tensor) -> dict[str, Tensor]:
        """How the decoded crop differs from the true one, ``[B, S]`` each."""
        stft, convergence = self.spectral(fake, real)
        terms = {"stft": stft, "convergence": convergence, "mel": F.l1_loss(self.mel(fake), self.mel(real))}
        if self.config.weights.multiscale:
            terms["multiscale"] = self.multiscale(fake, real)
        return terms

    def _distilled(self, values: Tensor, features: Tensor | None, mask: Tensor) -> dict[str, Tensor]:
        """What ``values [B, F, D]`` learn of a recogniser's ``features [B, F, K]``, where there are some."""
        if features is None:
            return {}
        return {"distil": distillation(self.helpers["distil"](values), features, mask)}

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
        for name, found in zip(self.codec.spec.codebook_names, zip(*counts, strict=True), strict=True):
            sums[f"{name}_perplexity"] = code_usage(torch.stack(found).sum(0)).perplexity
        self.codec = trained
        return sums

    def measured(self, batch: CodecBatch) -> dict[str, Any]:
        """More figures of a batch that is held out."""
        return {}

    def _result(self) -> Codec:
        """The codec that is evaluated and exported: the average of the weights, or the last ones."""
        return cast(Codec, self.modules.get("average", self.codec))

    def export(self, folder: Path) -> None:
        from speech_mtp.hub import save_codec

        save_codec(self._result(), folder, dtype="fp32")
