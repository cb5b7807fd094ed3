"""Training of the decoupled codec: what its streams must and must not carry.

Besides what every codec with this decoder is trained on (:mod:`speech_mtp.training.source_filter_task`), named terms:

* ``ctc``: phonemes from the quantised content (Graves et al. 2006); ``near``: the same from single frames of it, so
  that a code says by itself which phoneme sounds;
* ``frame``: the phoneme of every frame from that frame alone, where an aligner has told them;
* ``distil``: a recogniser's features from single frames of content (:mod:`speech_mtp.training.distilling`);
* ``energy``: what the prosody stream must carry besides the pitch, which the decoder sees nowhere else;
* ``adversary``: a speaker classifier on both streams behind a gradient reversal (Ganin et al. 2016);
* ``consistency``, ``codes``: two views of an utterance give the same content (:mod:`speech_mtp.training.views`);
* ``spread``: the levels of content are used alike; two views agree best where few are used;
* ``said``: in the decoded crop the codec hears the phonemes that the codes tell, so that no word is lost on the way.

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

from speech_mtp.codecs._source_filter import FrameEncoder
from speech_mtp.codecs.decoupled import Decoupled
from speech_mtp.nn.conv import Block
from speech_mtp.nn.ctc import Prior
from speech_mtp.training.codec_data import NOBODY, CodecBatch, check_heeded, cut, warp_frequency
from speech_mtp.training.precision import mixed
from speech_mtp.training.source_filter_task import SourceFilterTask, still
from speech_mtp.training.views import Change, equal_codes, perturbed_mel, view_terms

WITHOUT_DETAIL = "without_detail"


EDGE = 8
"""Frames at either end of a crop that are not asked what they say: of unchanged sound, cut out, those before are heard
otherwise than in the whole by 0.01 to 1.7 nats a frame, and all others by 0.0003 (the packaged codec)."""


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
    """Content values of single frames -> log probabilities of phonemes, ``per_frame`` in every frame: ``[B, F, D]`` ->
    ``[B, F * per_frame, V]``."""

    def __init__(self, dim_in: int, num_symbols: int, dim: int = 128, per_frame: int = 1) -> None:
        super().__init__()
        self.per_frame = per_frame
        self.net = nn.Sequential(nn.Linear(dim_in, dim), nn.GELU(), nn.Linear(dim, dim), nn.GELU())
        self.leave = nn.Linear(dim, per_frame * num_symbols)

    def forward(self, values: Tensor) -> Tensor:
        logits: Tensor = self.leave(self.net(values)).unflatten(-1, (self.per_frame, -1)).flatten(1, 2)
        return logits.float().log_softmax(-1)


class EnergyHead(nn.Module):
    """Prosody values -> log energy at 100 Hz, ``[B, F, D]`` -> ``[B, 4F]``."""

    def __init__(self, dim_in: int, steps: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim_in, 64), nn.GELU(), nn.Linear(64, steps))

    def forward(self, values: Tensor) -> Tensor:
        return self.net(values).flatten(1)


class CodecTask(SourceFilterTask):
    """Trains a :class:`Decoupled` codec that has a phoneme head."""

    codec: Decoupled

    def check(self, codec: Decoupled) -> None:
        config = self.config
        if codec.phonemes is None:
            raise ValueError("The codec to train needs num_symbols > 0: the phoneme CTC shapes its content stream.")
        if config.weights.said and config.crop_frames <= 2 * EDGE:
            raise ValueError(
                f"weights.said needs crops of more than {2 * EDGE} frames; task.crop_frames is {config.crop_frames}."
            )
        if not 0 <= config.drop_detail < 1:
            raise ValueError(f"task.drop_detail is {config.drop_detail}; it must be a share from 0 to below 1.")
        if codec.detail is None:
            check_heeded(config, ("drop_detail",), (), "The codec has no stream detail (model.detail_levels)")

    def make_helpers(self, voices: int) -> dict[str, nn.Module]:
        codec, config = self.codec, self.config
        dims = len(codec.config.content_levels), len(codec.config.prosody_levels)
        helpers: dict[str, nn.Module] = {
            "content": SpeakerAdversary(dims[0], voices),
            "prosody": SpeakerAdversary(dims[1], voices),
            "energy": EnergyHead(dims[1], codec.config.steps_per_frame),
        }
        symbols = codec.config.num_symbols
        if config.ctc_prior:
            helpers |= {"ctc_prior": Prior(symbols), "near_prior": Prior(symbols)}
        if config.weights.near:
            helpers["near"] = NearPhonemes(dims[0], symbols, per_frame=codec.config.phonemes_per_frame)
        if config.weights.frame:
            helpers["frame"] = NearPhonemes(dims[0], symbols)
        return helpers

    @property
    def dim_distilled(self) -> int:
        return len(self.codec.config.content_levels)

    @property
    def ear(self) -> FrameEncoder:
        return self.codec.content

    def features_of_ear(self, crop: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        mel, _, mask = self.codec.features(crop, lengths)
        return mel, mask

    def timbre(self, batch: CodecBatch) -> Tensor:
        """Of another utterance of the same voice."""
        with mixed(self.config.amp, self.device):
            mel, _, mask = self.codec.features(batch.reference, batch.reference_lengths)
            return self.codec.timbre(mel, mask).float()

    def measured(self, batch: CodecBatch) -> dict[str, Any]:
        """With ``views``, the share of content codes that stay under fixed views of the batch."""
        if self.config.views is None:
            return {}
        return dict(equal_codes(self.codec, batch.wave, batch.lengths, batch.pitch))

    def encode(self, batch: CodecBatch, timbre: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Values of content and prosody ``[B, F, D]``, and their terms.

        The content of some is heard on a warped frequency axis or, with ``views`` when their time has come, by another
        view.
        """
        c, codec = self.config, self.codec
        terms: dict[str, Tensor] = {}
        with mixed(c.amp, self.device):
            mel, low, mask = codec.features(batch.wave, batch.lengths)
            if c.views is None or self.number < c.views.after:
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
        if c.weights.spread:
            terms["spread"] = codec.content_fsq.unevenness(codec.content_fsq.place(raw), mask)
        content, _ = codec.content_fsq(raw)
        voices = {"content": batch.voice.masked_fill(changed, NOBODY), "prosody": batch.voice}
        terms |= self._distilled(content, batch.tracks.get("features"), mask)
        if "aligned" in batch.tracks:
            guesses = self.helpers["frame"](content).flatten(0, 1)
            terms["frame"] = F.nll_loss(guesses, batch.tracks["aligned"].flatten())
        terms |= self.stream_terms(batch, content, prosody, low[..., -1], mask, voices)
        if codec.detail is not None:
            with mixed(c.amp, self.device):
                content = torch.cat([content, codec.quantise_detail(mel, mask)[0]], -1)
        return content, prosody, terms

    def decoded(self, content: Tensor) -> Tensor:
        """A share of the rows comes without its detail."""
        levels = len(self.codec.config.detail_levels)
        if not levels:
            return content
        kept = torch.rand(len(content), device=content.device) >= self.config.drop_detail
        return torch.cat([content[..., :-levels], content[..., -levels:] * kept[:, None, None]], -1)

    def sound_terms(self, fake: Tensor, content: Tensor, crop: Tensor) -> dict[str, Tensor]:
        """``said``: how far the phonemes that the codec, held still, hears in the decoded crop are from those that the
        codes tell (Kullback-Leibler divergence, nats a frame), but for :data:`EDGE` frames at either end, which miss
        their neighbours."""
        if not self.config.weights.said:
            return {}
        codec, frames = self.codec, self.config.crop_frames
        told = cut(content[..., : len(codec.config.content_levels)].detach(), crop, frames)
        mel, mask = self.features_of_ear(fake, torch.full((len(fake),), fake.shape[1], device=fake.device))
        with mixed(self.config.amp, self.device):
            again, _ = codec.content_fsq(still(self.ear, mel, mask).float())
            heard = still(codec.phonemes, again, mask).float().log_softmax(-1)
            with torch.no_grad():
                expected = still(codec.phonemes, told, mask).float().log_softmax(-1)
        each = heard.shape[1] // frames
        inner = slice(EDGE * each, (frames - EDGE) * each)
        loss = F.kl_div(heard[:, inner], expected[:, inner], reduction="none", log_target=True)
        return {"said": each * loss.sum(-1).mean()}

    def export(self, folder: Path) -> None:
        """With a stream of detail, also the codec without it, in the folder ``without_detail`` beside ``folder``."""
        super().export(folder)
        result = cast(Decoupled, self._result())
        if result.detail is not None:
            from speech_mtp.hub import save_codec

            save_codec(result.without_detail(), folder.with_name(WITHOUT_DETAIL), dtype="fp32")

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


def speaker_loss(guesses: Tensor, voices: Tensor) -> Tensor:
    """Mean cross entropy of ``guesses [B, voices]`` over the rows whose voice has a label; 0 where none has."""
    total = F.cross_entropy(guesses.float(), voices, ignore_index=NOBODY, reduction="sum")
    return total / (voices != NOBODY).sum().clamp(min=1)
