"""Training of the decoupled codec: reconstruction, phoneme CTC, pitch and energy, speaker adversary.

The total is a weighted sum of named terms (weights in the recipe):

* ``stft``, ``convergence``: multi-resolution spectra of a crop, decoded with the true pitch;
* ``mel``: L1 of log-mel spectra of that crop;
* ``heard``: L1 of what the content encoder, held still, makes of the decoded and of the true crop, so that the decoder
  spends its effort on what tells phonemes apart;
* ``ctc``: phonemes from the quantised content (Graves et al. 2006); ``near``: the same from single frames of it, so
  that a code says by itself which phoneme sounds;
* ``pitch``, ``voicing``, ``energy``: what the prosody stream must carry; the decoder sees pitch nowhere else;
* ``adversary``: a speaker classifier on both streams behind a gradient reversal (Ganin et al. 2016);
* ``consistency``, ``codes``: two views of an utterance give the same content (:mod:`speech_mtp.training.views`);
* ``multiscale``: L1 of log-mel spectra at several window sizes;
* ``critic``, ``feature``: optional multi-resolution spectrogram critics (least-squares GAN, feature matching).

The timbre vector comes from *another* utterance of the same voice, so it cannot carry content, and the content
encoder hears a randomly warped frequency axis, so it cannot rely on the vocal tract. A voice at another speed or on a
warped axis is a new one: the adversary is not told that it is the voice that it was made from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp.codecs.decoupled import Decoupled
from speech_mtp.corpus.store import AudioStore
from speech_mtp.evaluation.code_usage import code_usage, count_codes
from speech_mtp.nn.conv import Block
from speech_mtp.nn.critics import SpectrogramCritics, critic_loss, generator_loss
from speech_mtp.nn.ctc import Prior, ctc
from speech_mtp.nn.source_filter import Pitch
from speech_mtp.nn.spectral import MultiScaleMel, SpectralLoss
from speech_mtp.training.averaging import average_of, update
from speech_mtp.training.base import Task
from speech_mtp.training.codec_data import NOBODY, CodecBatch, CodecData, CodecTaskConfig, cut, warp_frequency
from speech_mtp.training.device_data import DeviceAudio, DeviceCodecData
from speech_mtp.training.distributed import Workers
from speech_mtp.training.precision import mixed
from speech_mtp.training.views import Change, equal_codes, perturbed_mel, view_terms


class ReverseGradient(torch.autograd.Function):
    """Identity forward, minus the gradient backward."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return -grads[0]


class SpeakerAdversary(nn.Module):
    """Guesses the voice from stream values ``[B, F, D]`` -> ``[B, voices]`` per utterance."""

    def __init__(self, dim_in: int, voices: int, dim: int = 96) -> None:
        super().__init__()
        self.enter = nn.Linear(dim_in, dim)
        self.block = Block(dim, 5)
        self.leave = nn.Linear(dim, voices)

    def forward(self, values: Tensor, mask: Tensor) -> Tensor:
        x = self.block(self.enter(ReverseGradient.apply(values)), mask)
        return self.leave((x * mask).sum(1) / mask.sum(1))


class NearPhonemes(nn.Module):
    """Content values of single frames -> log probabilities of phonemes, ``[B, F, D]`` -> ``[B, F, V]``."""

    def __init__(self, dim_in: int, num_symbols: int, dim: int = 128) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim_in, dim), nn.GELU(), nn.Linear(dim, dim), nn.GELU())
        self.leave = nn.Linear(dim, num_symbols)

    def forward(self, values: Tensor) -> Tensor:
        return self.leave(self.net(values)).float().log_softmax(-1)


class EnergyHead(nn.Module):
    """Prosody values -> log energy at 100 Hz, ``[B, F, D]`` -> ``[B, 4F]``."""

    def __init__(self, dim_in: int, steps: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim_in, 64), nn.GELU(), nn.Linear(64, steps))

    def forward(self, values: Tensor) -> Tensor:
        return self.net(values).flatten(1)


class CodecTask(Task):
    """Trains a :class:`Decoupled` codec that has a phoneme head."""

    def __init__(
        self,
        codec: Decoupled,
        store: AudioStore,
        config: CodecTaskConfig,
        device: torch.device,
        workers: Workers | None = None,
    ) -> None:
        self.workers = workers or Workers()
        if codec.phonemes is None:
            raise ValueError("The codec to train needs num_symbols > 0: the phoneme CTC shapes its content stream.")
        self.codec = codec.to(device).train()
        self.config, self.device = config, device
        self.data: CodecData | DeviceCodecData
        self.dev_data: CodecData | DeviceCodecData
        if config.on_device:
            audio = DeviceAudio(store, device)
            self.data, self.dev_data = (DeviceCodecData(audio, codec, config, split) for split in ("train", "dev"))
        else:
            self.data, self.dev_data = (CodecData(store, codec, config, split) for split in ("train", "dev"))
        dims = len(codec.config.content_levels), len(codec.config.prosody_levels)
        voices = len(self.data.voices)
        helpers: dict[str, nn.Module] = {
            "content": SpeakerAdversary(dims[0], voices),
            "prosody": SpeakerAdversary(dims[1], voices),
            "energy": EnergyHead(dims[1], codec.config.steps_per_frame),
        }
        symbols = codec.config.num_symbols
        if config.ctc_prior:
            helpers |= {"ctc_prior": Prior(symbols), "near_prior": Prior(symbols)}
        if config.weights.near:
            helpers["near"] = NearPhonemes(dims[0], symbols)
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

        1. encode whole utterances, 2. phonemes, adversary and energy on whole utterances, 3. decode a crop with the
        true pitch, 4. compare spectra.
        """
        codec, c = self.codec, self.config
        with mixed(c.amp, self.device):
            reference, _, reference_mask = codec.features(batch.reference, batch.reference_lengths)
            timbre = codec.timbre(reference, reference_mask).float()
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

    def encode(self, batch: CodecBatch, timbre: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Values of content and prosody ``[B, F, D]``, and their terms.

        The content of some is heard on a warped frequency axis or, with ``views``, by another view.
        """
        c, codec = self.config, self.codec
        terms: dict[str, Tensor] = {}
        with mixed(c.amp, self.device):
            mel, low, mask = codec.features(batch.wave, batch.lengths)
            if c.views is None:
                changed = torch.rand(len(mel), device=mel.device) < c.warp_share
                spread = c.warp * torch.randn(len(mel), device=mel.device).clamp(-2, 2)
                raw = codec.content(warp_frequency(mel, 1 + spread * changed), mask).float()
            else:
                changed = torch.rand(len(mel), device=mel.device) < c.views.share
                change = Change.random(c.views, len(mel), mel.device)
                view = perturbed_mel(codec, batch.wave, batch.lengths, batch.pitch, change)
                both = codec.content(torch.cat([mel, view.to(mel)]), torch.cat([mask, mask])).float()
                first, second = both.chunk(2)
                terms = view_terms(codec.content_fsq, first, second, mask)
                raw = torch.where(changed[:, None, None], second, first)
            prosody, _ = codec.prosody_fsq(codec.prosody(low, mask, codec.speaker_of_prosody(timbre)).float())
        content, _ = codec.content_fsq(raw)
        voices = {"content": batch.voice.masked_fill(changed, NOBODY), "prosody": batch.voice}
        return content, prosody, terms | self.stream_terms(batch, content, prosody, low[..., -1], mask, voices)

    def stream_terms(
        self,
        batch: CodecBatch,
        content: Tensor,
        prosody: Tensor,
        loudness: Tensor,
        mask: Tensor,
        voices: dict[str, Tensor],
    ) -> dict[str, Tensor]:
        """What the streams must and must not carry: phonemes, energy (``loudness [B, 4F]``) and no voice.

        ``voices`` are the labels ``[B]`` of each stream, ``NOBODY`` where it holds a voice that no speaker has.
        """
        codec = self.codec
        with mixed(self.config.amp, self.device):
            said = {"ctc": codec.phonemes(content, mask).float().log_softmax(-1)}  # type: ignore[misc]
            if self.config.weights.near:
                said["near"] = self.helpers["near"](content)
            guesses = {
                "content": self.helpers["content"](content, mask),
                "prosody": self.helpers["prosody"](prosody, mask),
            }
            energy = self.helpers["energy"](prosody).float()
        fine = mask[..., 0].repeat_interleave(codec.config.steps_per_frame, 1)
        return {
            **{name: self._phonemes_said(name, log_probs, batch, mask) for name, log_probs in said.items()},
            "adversary": torch.stack([speaker_loss(g, voices[name]) for name, g in guesses.items()]).mean(),
            "energy": ((energy - loudness).abs() * fine).sum() / fine.sum(),
        }

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
        """The content encoder's inner vectors of ``crop [B, S]``, ``[B, F, D]``; its weights get no gradient."""
        lengths = torch.full((len(crop),), crop.shape[1], device=crop.device)
        encoder = self.codec.content
        still = {name: value.detach() for name, value in encoder.named_parameters()}
        with mixed(self.config.amp, self.device):
            mel, _, mask = self.codec.features(crop, lengths)
            inner = torch.func.functional_call(encoder, still, (mel, mask), {"inner": True})
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
        """The terms on fixed batches of sentences that are never trained on, and with ``views`` the share of content
        codes that stay under fixed views of them; and how many codes of each stream are in effective use."""
        torch.manual_seed(0)
        sums: dict[str, float] = {}
        counts: list[list[Tensor]] = []
        trained, self.codec = self.codec, self._result()
        for number in range(4):
            batch = self.dev_data.batch(number).to(self.device)
            terms: dict[str, Any] = self.terms(batch)[0]
            if self.config.views is not None:
                terms |= equal_codes(self.codec, batch.wave, batch.lengths, batch.pitch)
            codes = self.codec.encode(batch.wave[:, None], batch.lengths)
            counts.append(count_codes(codes, self.codec.spec.codebook_sizes))
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + float(value) / 4
        for name, found in zip(self.codec.spec.streams, zip(*counts, strict=True), strict=True):
            sums[f"{name}_perplexity"] = code_usage(torch.stack(found).sum(0)).perplexity
        self.codec = trained
        return sums

    def _result(self) -> Decoupled:
        """The codec that is evaluated and exported: the average of the weights, or the last ones."""
        return cast(Decoupled, self.modules.get("average", self.codec))

    def export(self, folder: Path) -> None:
        from speech_mtp.hub import save_codec

        save_codec(self._result(), folder, dtype="fp32")


def speaker_loss(guesses: Tensor, voices: Tensor) -> Tensor:
    """Mean cross entropy of ``guesses [B, voices]`` over the rows whose voice has a label; 0 where none has."""
    total = F.cross_entropy(guesses.float(), voices, ignore_index=NOBODY, reduction="sum")
    return total / (voices != NOBODY).sum().clamp(min=1)


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
