"""Training of the decoupled codec: reconstruction, phoneme CTC, pitch and energy, speaker adversary.

The total is a weighted sum of named terms (weights in the recipe):

* ``stft``, ``convergence``: multi-resolution spectra of a crop, decoded with the true pitch;
* ``mel``: L1 of log-mel spectra of that crop;
* ``heard``: L1 of what the content encoder, held still, makes of the decoded and of the true crop, so that the decoder
  spends its effort on what tells phonemes apart;
* ``ctc``: phonemes from the quantised content (Graves et al. 2006);
* ``pitch``, ``voicing``, ``energy``: what the prosody stream must carry; the decoder sees pitch nowhere else;
* ``adversary``: a speaker classifier on both streams behind a gradient reversal (Ganin et al. 2016);
* ``critic``, ``feature``: optional multi-resolution spectrogram critics (least-squares GAN, feature matching).

The timbre vector comes from *another* utterance of the same voice, so it cannot carry content, and the content
encoder hears a randomly warped frequency axis, so it cannot rely on the vocal tract.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import ConfigDict
from torch import Tensor, nn

from speech_mtp.codecs.decoupled import Decoupled
from speech_mtp.corpus.store import AudioStore
from speech_mtp.nn.conv import Block
from speech_mtp.nn.critics import SpectrogramCritics, critic_loss, generator_loss
from speech_mtp.nn.source_filter import Pitch
from speech_mtp.nn.spectral import SpectralLoss
from speech_mtp.text.phonemes import parse
from speech_mtp.training.base import Task
from speech_mtp.training.distributed import Workers

_RATIOS = ((10, 9), (9, 10), (11, 10), (10, 11), (8, 7), (7, 8))


@dataclass(frozen=True)
class CodecWeights:
    """Weights of the terms; ``critic`` 0 trains without discriminators."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    stft: float = 1.0
    convergence: float = 1.0
    mel: float = 1.0
    heard: float = 2.0
    ctc: float = 0.25
    pitch: float = 2.0
    voicing: float = 0.3
    energy: float = 0.3
    adversary: float = 0.1
    critic: float = 0.0
    feature: float = 2.0


@dataclass(frozen=True)
class CodecTaskConfig:
    """``crop_frames`` codec frames are decoded per utterance; ``resample`` is the share of utterances whose
    speed, pitch and formants are shifted together to make new voices; ``warp`` the spread of the frequency warp.
    With ``keep_codes`` the encoders stand still and only the decoder learns, on codes as they are spoken (no warp, no
    other speed): codes made before stay good, and so does a talker trained on them."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    batch: int = 8
    crop_frames: int = 32
    max_seconds: float = 4.5
    reference_s: float = 1.5
    resample: float = 0.3
    warp: float = 0.12
    amp: bool = True
    keep_codes: bool = False
    critic_from: int = 0
    seed: int = 0
    weights: CodecWeights = field(default_factory=CodecWeights)


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


class EnergyHead(nn.Module):
    """Prosody values -> log energy at 100 Hz, ``[B, F, D]`` -> ``[B, 4F]``."""

    def __init__(self, dim_in: int, steps: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim_in, 64), nn.GELU(), nn.Linear(64, steps))

    def forward(self, values: Tensor) -> Tensor:
        return self.net(values).flatten(1)


@dataclass
class CodecBatch:
    """``wave [B, S]``, ``lengths [B]``, ``pitch [B, S / hop]`` Hz, ``phonemes`` concatenated with ``phoneme_lengths``,
    ``voice [B]``, ``reference [B, S']`` of the same voice, ``crop [B]`` first frame of the decoded crop."""

    wave: Tensor
    lengths: Tensor
    pitch: Tensor
    phonemes: Tensor
    phoneme_lengths: Tensor
    voice: Tensor
    reference: Tensor
    crop: Tensor

    def to(self, device: torch.device) -> CodecBatch:
        return CodecBatch(**{k: v.to(device) for k, v in self.__dict__.items()})


class CodecData:
    """Batches of an audio store by number: ``batch(n)`` is a pure function of the seed and ``n``."""

    def __init__(self, store: AudioStore, codec: Decoupled, config: CodecTaskConfig, split: str = "train") -> None:
        self.store, self.config, self.spec = store, config, codec.spec
        self.hop = codec.config.hop
        limit = int(config.max_seconds * codec.spec.sample_rate)
        least = (config.crop_frames + 4) * codec.spec.samples_per_frame
        rows = enumerate(store.rows)
        self.indices = [i for i, r in rows if r.split == split and least < r.samples <= limit]
        if not self.indices:
            raise ValueError(f"The corpus has no {split} utterance between {least} and {limit} samples.")
        self.voices = sorted({r.voice for r in store.rows})
        self.by_voice = {v: [i for i in self.indices if store.rows[i].voice == v] for v in self.voices}
        self.by_voice = {v: rows for v, rows in self.by_voice.items() if rows}
        self.phonemes = [[u.id for u in parse(r.phonemes)] for r in store.rows]

    def batch(self, number: int) -> CodecBatch:
        """Voices are drawn evenly, utterances evenly within a voice."""
        rng = np.random.default_rng((self.config.seed, number))
        voices = [list(self.by_voice)[i] for i in rng.integers(len(self.by_voice), size=self.config.batch)]
        picks = [(v, *rng.choice(self.by_voice[v], 2)) for v in voices]
        waves, pitches, references = [], [], []
        for _, index, other in picks:
            wave, pitch = self.store.wave(index), self.store.pitch(index)
            reference = self.store.wave(other)[: int(self.config.reference_s * self.spec.sample_rate)]
            if not self.config.keep_codes and rng.random() < self.config.resample:
                up, down = _RATIOS[rng.integers(len(_RATIOS))]
                wave, pitch = shift_voice(wave, pitch, up, down, self.hop)
                reference, _ = shift_voice(reference, pitch, up, down, self.hop)
            gain = float(rng.uniform(0.6, 1.3))
            waves.append(wave * gain)
            references.append(reference * gain)
            pitches.append(pitch)
        size, crop = self.spec.samples_per_frame, self.config.crop_frames
        frames = [-(-len(w) // size) for w in waves]
        longest = -(-max(frames) // 16) * 16 * size  # few distinct shapes: CPU kernels are compiled per shape
        pad = nn.functional.pad
        return CodecBatch(
            wave=torch.stack([pad(w, (0, longest - len(w))) for w in waves]),
            lengths=torch.tensor([len(w) for w in waves]),
            pitch=torch.stack([pad(p, (0, longest // self.hop - len(p))) for p in pitches]),
            phonemes=torch.tensor([p for _, i, _ in picks for p in self.phonemes[i]]),
            phoneme_lengths=torch.tensor([len(self.phonemes[i]) for _, i, _ in picks]),
            voice=torch.tensor([self.voices.index(v) for v, _, _ in picks]),
            reference=nn.utils.rnn.pad_sequence(references, batch_first=True),
            crop=torch.tensor([int(rng.integers(0, max(1, f - crop - 1))) for f in frames]),
        )


def shift_voice(wave: Tensor, pitch: Tensor, up: int, down: int, hop: int) -> tuple[Tensor, Tensor]:
    """Play ``wave [S]`` at ``down / up`` of its speed: tempo, pitch (Hz, ``[S / hop]``) and formants move together."""
    import torchaudio

    shifted = torchaudio.functional.resample(wave, down, up)
    steps = -(-len(shifted) // hop)
    at = ((torch.arange(steps) + 1) * down / up - 1).round().long().clamp(0, len(pitch) - 1)
    return shifted, pitch[at] * down / up


def warp_frequency(mel: Tensor, factors: Tensor) -> Tensor:
    """Stretch the mel axis of ``mel [B, F, mels]`` by ``factors [B]`` (vocal tract length perturbation)."""
    bands = mel.shape[-1]
    at = (torch.arange(bands, device=mel.device) * factors[:, None]).clamp(0, bands - 1.001)
    low = at.floor().long()
    part = (at - low)[:, None]
    index = low[:, None].expand(-1, mel.shape[1], -1)
    return mel.gather(2, index) * (1 - part) + mel.gather(2, index + 1) * part


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
        self.data = CodecData(store, codec, config)
        dims = len(codec.config.content_levels), len(codec.config.prosody_levels)
        voices = len(self.data.voices)
        helpers: dict[str, nn.Module] = {
            "content": SpeakerAdversary(dims[0], voices),
            "prosody": SpeakerAdversary(dims[1], voices),
            "energy": EnergyHead(dims[1], codec.config.steps_per_frame),
        }
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
        if config.weights.critic:
            self.critics = SpectrogramCritics().to(device)
            self.modules["critics"] = self.critics
            self.optimizers["critics"] = torch.optim.AdamW(self.critics.parameters(), betas=(0.8, 0.98), fused=True)

    def step(self, number: int, learning_rate: float) -> dict[str, float]:
        batch = self.data.batch(self.workers.batch_number(number)).to(self.device)
        terms, fake, real = self.terms(batch)
        adversarial = self.config.weights.critic > 0 and number >= self.config.critic_from
        scalars: dict[str, float] = {}
        if adversarial:
            scalars["critics"] = self._update("critics", critic_loss(self.critics, fake.detach(), real), learning_rate)
            terms["critic"], terms["feature"] = generator_loss(self.critics, fake, real)
        total = torch.stack([getattr(self.config.weights, k) * v for k, v in terms.items()]).sum()
        scalars["loss"] = self._update("codec", total, learning_rate)
        return scalars | {k: float(v.detach()) for k, v in terms.items()}

    def _update(self, name: str, loss: Tensor, learning_rate: float) -> float:
        optimizer = self.optimizers[name]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        parameters = [p for g in optimizer.param_groups for p in g["params"]]
        self.workers.average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        return float(loss.detach())

    def terms(self, batch: CodecBatch) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Named loss terms, and the decoded and the true crop ``[B, S]``.

        1. encode whole utterances, 2. phonemes, adversary and energy on whole utterances, 3. decode a crop with the
        true pitch, 4. compare spectra.
        """
        codec, c = self.codec, self.config
        with torch.autocast(self.device.type, torch.bfloat16, enabled=c.amp):
            mel, low, mask = codec.features(batch.wave, batch.lengths)
            count = torch.full_like(batch.lengths, batch.reference.shape[-1])
            reference, _, reference_mask = codec.features(batch.reference, count)
            timbre = codec.timbre(reference, reference_mask).float()
            if not c.keep_codes:
                mel = warp_frequency(mel, 1 + c.warp * torch.randn(len(mel), device=mel.device).clamp(-2, 2))
            (content, _), (prosody, _) = codec.quantise(mel, low, mask, timbre)
        terms = {} if c.keep_codes else self.stream_terms(batch, content, prosody, low[..., -1], mask)
        fake, real, pitch_terms = self.decode_crop(batch, content, prosody, timbre)
        terms |= pitch_terms
        terms["stft"], terms["convergence"] = self.spectral(fake, real)
        terms["mel"] = F.l1_loss(codec.mel(fake), codec.mel(real))
        if c.weights.heard:
            with torch.no_grad():
                expected = self.heard(real)
            terms["heard"] = (self.heard(fake) - expected).abs().mean()
        return terms, fake, real

    def stream_terms(
        self, batch: CodecBatch, content: Tensor, prosody: Tensor, loudness: Tensor, mask: Tensor
    ) -> dict[str, Tensor]:
        """What the streams must and must not carry: phonemes, energy (``loudness [B, 4F]``) and no voice."""
        codec = self.codec
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp):
            logits = codec.phonemes(content, mask).float()  # type: ignore[misc]
            guesses = [self.helpers["content"](content, mask), self.helpers["prosody"](prosody, mask)]
            energy = self.helpers["energy"](prosody).float()
        fine = mask[..., 0].repeat_interleave(codec.config.steps_per_frame, 1)
        return {
            "ctc": F.ctc_loss(
                logits.log_softmax(-1).transpose(0, 1),
                batch.phonemes,
                mask[..., 0].sum(1).long(),
                batch.phoneme_lengths,
                zero_infinity=True,
            ),
            "adversary": torch.stack([F.cross_entropy(g.float(), batch.voice) for g in guesses]).mean(),
            "energy": ((energy - loudness).abs() * fine).sum() / fine.sum(),
        }

    def heard(self, crop: Tensor) -> Tensor:
        """The content encoder's inner vectors of ``crop [B, S]``, ``[B, F, D]``; its weights get no gradient."""
        lengths = torch.full((len(crop),), crop.shape[1], device=crop.device)
        encoder = self.codec.content
        still = {name: value.detach() for name, value in encoder.named_parameters()}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp):
            mel, _, mask = self.codec.features(crop, lengths)
            inner = torch.func.functional_call(encoder, still, (mel, mask), {"inner": True})
        return torch.as_tensor(inner).float()

    def decode_crop(
        self, batch: CodecBatch, content: Tensor, prosody: Tensor, timbre: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Decode ``crop_frames`` frames of each row from a fresh state, in the decoder's own delayed time."""
        codec, decoder = self.codec, self.codec.decoder
        size, steps, n = codec.spec.samples_per_frame, decoder.steps, self.config.crop_frames
        take = n + decoder.flush_frames
        at = batch.crop[:, None] + torch.arange(take, device=content.device)
        padded = [
            F.pad(x, (0, 0, 0, take)).gather(1, at[..., None].expand(-1, -1, x.shape[-1])) for x in (content, prosody)
        ]
        lag = batch.crop[:, None] * steps + torch.arange(-steps, (take - 1) * steps, device=at.device)
        hertz = F.pad(batch.pitch, (steps, take * steps)).gather(1, (lag + steps))
        voiced = (hertz > 0).float()
        truth = Pitch(fill_unvoiced(hertz), voiced)
        state = decoder.open(len(content), content.device)
        state.timbre = timbre
        state.f0 = truth.log_f0[:, 0].double().exp()
        lengths = torch.full((len(content),), take, device=content.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.amp):
            raw, guess = decoder(state, *padded, lengths, truth)
        fake = raw[:, decoder.delay_samples :][:, : n * size]
        where = batch.crop[:, None] * size + torch.arange(n * size, device=at.device)
        real = F.pad(batch.wave, (0, take * size)).gather(1, where)
        error = (guess.log_f0.float() - truth.log_f0).abs() * voiced
        return (
            fake,
            real,
            {
                "pitch": error.sum() / voiced.sum().clamp(min=1),
                "voicing": F.binary_cross_entropy_with_logits(guess.voiced.float(), voiced),
            },
        )

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The terms on fixed batches far from the training ones, and the share of codes in use."""
        torch.manual_seed(0)
        sums: dict[str, float] = {}
        for number in range(4):
            terms, _, _ = self.terms(self.data.batch(1_000_000_000 + number).to(self.device))
            for name, value in terms.items():
                sums[name] = sums.get(name, 0.0) + float(value) / 4
        return sums

    def export(self, folder: Path) -> None:
        from speech_mtp.hub import save_codec

        save_codec(self.codec, folder, dtype="fp32")


def fill_unvoiced(hertz: Tensor) -> Tensor:
    """``[B, F]`` Hz with 0 where unvoiced -> log Hz, unvoiced stretches holding the last voiced value."""
    steps = torch.arange(hertz.shape[1], device=hertz.device).expand_as(hertz)
    last = torch.where(hertz > 0, steps, torch.full_like(steps, -1)).cummax(1).values
    first = torch.where(hertz > 0, steps, torch.full_like(steps, hertz.shape[1])).amin(1, keepdim=True)
    index = torch.where(last >= 0, last, first.clamp(max=hertz.shape[1] - 1))
    held = hertz.gather(1, index)
    return torch.where(held > 0, held, torch.full_like(held, 150.0)).log()
