"""What the codec's task is trained on: its settings, and batches of utterances from an audio store.

The timbre vector comes from *another* utterance of the same voice. Some utterances are played at another speed, which
makes new voices: such a voice is nobody's, so it has no label.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from speech_mtp.corpus.store import PITCH_HOP, AudioStore
from speech_mtp.corpus.texts import rows_of
from speech_mtp.text.phonemes import parse
from speech_mtp.training.tracks import Tracks, check_ids, padded
from speech_mtp.training.views import Views
from speech_mtp.types import CodecSpec

NOBODY = -100
"""The label of a voice that no speaker has; ``cross_entropy`` leaves it out."""
_RATIOS = ((10, 9), (9, 10), (11, 10), (10, 11), (8, 7), (7, 8))


@dataclass(frozen=True)
class CodecWeights:
    """Weights of the terms; ``critic`` 0 trains without discriminators."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    stft: float = 1.0
    convergence: float = 1.0
    mel: float = 1.0
    heard: float = 2.0
    said: float = 0.0
    ctc: float = 0.25
    near: float = 0.0
    frame: float = 0.0
    pitch: float = 2.0
    voicing: float = 0.3
    energy: float = 0.3
    adversary: float = 0.1
    multiscale: float = 0.0
    books: float = 1.0
    distil: float = 0.0
    consistency: float = 0.0
    codes: float = 0.0
    spread: float = 0.0
    critic: float = 0.0
    feature: float = 2.0


@dataclass(frozen=True)
class CriticConfig:
    """Critics of ``width`` on crops of ``crop_frames`` (0: the whole decoded crop), every ``every`` steps; with ``one``
    a single resolution a step, each in its turn. They learn at ``rate`` times the codec's learning rate."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    width: Annotated[int, Field(ge=1)] = 24
    crop_frames: Annotated[int, Field(ge=0)] = 0
    every: Annotated[int, Field(ge=1)] = 1
    one: bool = False
    rate: Annotated[float, Field(gt=0)] = 1.0


@dataclass(frozen=True)
class CodecTaskConfig:
    """``crop_frames`` codec frames are decoded per utterance; ``resample`` is the share of utterances whose
    speed, pitch and formants are shifted together to make new voices; ``warp_share`` the share whose frequency axis is
    warped before the content encoder hears it, and ``warp`` the spread of that warp. The speaker adversary learns from
    the others alone, so ``warp_share`` 1 leaves it without content. With ``keep_codes`` the encoders stand still and
    only the decoder learns, on the codes that ``encode`` gives (no warp, no other speed): codes made before stay good,
    and so does a talker trained on them.

    ``ctc_prior`` is the power of the label priors of both phoneme losses (:mod:`speech_mtp.nn.ctc`; 0: plain CTC).

    With ``views``, from their step ``after`` on, there is no warp: every utterance is heard a second time as
    :class:`Views` perturb it, for the terms ``consistency`` and ``codes``, and the decoder hears a share of the
    utterances by that view alone. A voice is drawn with a probability that goes as its number of utterances to
    ``voice_power``. ``predicted_share`` of the crops are decoded with the predicted pitch and ``drop_detail`` of them
    without the stream of that name, ``ema`` is the decay of the weight average that is evaluated and exported (0: the
    last weights), and with ``on_device`` all audio lies in the memory of the device."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    batch: int = 8
    crop_frames: int = 32
    max_seconds: float = 4.5
    reference_s: float = 1.5
    resample: float = 0.3
    warp: float = 0.12
    warp_share: float = 0.5
    amp: bool | None = None
    ctc_prior: float = 0.0
    keep_codes: bool = False
    critic_from: int = 0
    critics: CriticConfig = CriticConfig()
    views: Views | None = None
    voice_power: float = 0.0
    predicted_share: float = 0.0
    drop_detail: float = 0.5
    ema: float = 0.0
    on_device: bool = False
    seed: int = 0
    weights: CodecWeights = field(default_factory=CodecWeights)


def check_heeded(config: CodecTaskConfig, settings: tuple[str, ...], terms: tuple[str, ...], why: str) -> None:
    """Raises ``ValueError``, with the reason ``why``, where one of ``settings`` or the weight of one of ``terms``,
    which nothing listens to, was changed."""
    usual = CodecTaskConfig()
    changed = [name for name in settings if getattr(config, name) != getattr(usual, name)]
    changed += [f"weights.{name}" for name in terms if getattr(config.weights, name) != getattr(usual.weights, name)]
    if changed:
        raise ValueError(f"{why}; leave task.{changed[0]} out.")


@dataclass
class CodecBatch:
    """``wave [B, S]``, ``lengths [B]``, ``pitch [B, S / hop]`` Hz, ``phonemes`` concatenated with ``phoneme_lengths``,
    ``voice [B]`` (``NOBODY`` at another speed), ``reference [B, S']`` of the same voice with ``reference_lengths [B]``,
    ``crop [B]`` first frame of the decoded crop, ``tracks [B, F, ...]`` what else is known of the frames, by name.
    ``frames [B]`` and ``phoneme_lengths`` stay on the host, where the CTC loss reads them."""

    wave: Tensor
    lengths: Tensor
    pitch: Tensor
    phonemes: Tensor
    phoneme_lengths: Tensor
    voice: Tensor
    reference: Tensor
    reference_lengths: Tensor
    crop: Tensor
    frames: Tensor
    tracks: dict[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> CodecBatch:
        host = ("frames", "phoneme_lengths", "tracks")
        moved = {k: v if k in host else v.to(device) for k, v in self.__dict__.items()}
        return CodecBatch(**moved | {"tracks": {k: v.to(device) for k, v in self.tracks.items()}})


class CodecData:
    """Batches of an audio store by number: ``batch(n)`` is a pure function of the seed and ``n``."""

    def __init__(
        self,
        store: AudioStore,
        spec: CodecSpec,
        config: CodecTaskConfig,
        split: str = "train",
        tracks: Tracks | None = None,
    ) -> None:
        self.store, self.config, self.spec, self.tracks = store, config, spec, tracks or {}
        limit = int(config.max_seconds * spec.sample_rate)
        least = (config.crop_frames + 4) * spec.samples_per_frame
        self.voices = sorted({r.voice for r in store.rows})
        fitting = [i for i in rows_of(store.rows, split) if least < store.rows[i].samples <= limit]
        check_ids(self.tracks, [store.rows[i].id for i in fitting])
        by_voice = {v: [i for i in fitting if store.rows[i].voice == v] for v in self.voices}
        self.by_voice = {v: np.array(rows) for v, rows in by_voice.items() if len(rows) > 1}
        counts = np.array([len(rows) for rows in self.by_voice.values()], float) ** config.voice_power
        self.chances = counts / counts.sum()
        if not self.by_voice:
            raise ValueError(
                f"The corpus has no voice with two {split} utterances between {least} and {limit} samples; one is "
                "spoken with the timbre of the other."
            )

    def batch(self, number: int) -> CodecBatch:
        """Voices are drawn by their chances, utterances evenly within a voice, the reference among its others."""
        rng = np.random.default_rng((self.config.seed, number))
        picks = self.draw(rng)
        waves, pitches, references, labels = zip(*(self._speech(rng, *pick) for pick in picks), strict=True)
        size, crop = self.spec.samples_per_frame, self.config.crop_frames
        frames = [-(-len(w) // size) for w in waves]
        longest = -(-max(frames) // 16) * 16 * size  # few distinct shapes: CPU kernels are compiled per shape
        phonemes = [[u.id for u in parse(self.store.rows[i].phonemes)] for i, _ in picks]
        said = list(zip((self.store.rows[i].id for i, _ in picks), frames, strict=True))
        pad = nn.functional.pad
        return CodecBatch(
            wave=torch.stack([pad(w, (0, longest - len(w))) for w in waves]),
            lengths=torch.tensor([len(w) for w in waves]),
            pitch=torch.stack([pad(p, (0, longest // PITCH_HOP - len(p))) for p in pitches]),
            phonemes=torch.tensor([p for row in phonemes for p in row]),
            phoneme_lengths=torch.tensor([len(row) for row in phonemes]),
            voice=torch.tensor(labels),
            reference=nn.utils.rnn.pad_sequence(list(references), batch_first=True),
            reference_lengths=torch.tensor([len(r) for r in references]),
            crop=torch.tensor([int(rng.integers(0, max(1, f - crop - 1))) for f in frames]),
            frames=torch.tensor(frames),
            tracks={name: padded(track, said, longest // size) for name, track in self.tracks.items()},
        )

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """The rows of the utterances and those of their references, ``[B, 2]``."""
        voices = rng.choice(len(self.chances), self.config.batch, p=self.chances)
        rows = [list(self.by_voice.values())[voice] for voice in voices]
        first = [int(rng.integers(len(own))) for own in rows]
        other = [int(rng.integers(len(own) - 1)) for own in rows]
        pairs = [(own[i], own[j + (j >= i)]) for own, i, j in zip(rows, first, other, strict=True)]
        return np.array(pairs)

    def _speech(self, rng: np.random.Generator, index: int, other: int) -> tuple[Tensor, Tensor, Tensor, int]:
        """Wave and pitch of the utterance ``index``, the reference from ``other``, and the label of their voice."""
        wave, pitch = self.store.wave(index), self.store.pitch(index)
        reference = self.store.wave(other)[: int(self.config.reference_s * self.spec.sample_rate)]
        label = self.voices.index(self.store.rows[index].voice)
        if not self.config.keep_codes and rng.random() < self.config.resample:
            up, down = _RATIOS[rng.integers(len(_RATIOS))]
            wave, pitch = shift_voice(wave, pitch, up, down, PITCH_HOP)
            reference, _ = shift_voice(reference, pitch, up, down, PITCH_HOP)
            label = NOBODY
        gain = float(rng.uniform(0.6, 1.3))
        return wave * gain, pitch, reference * gain, label


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


def cut(track: Tensor, start: Tensor, count: int) -> Tensor:
    """``count`` entries of each row of ``track [B, T, ...]`` from ``start [B]`` on: ``[B, count, ...]``.

    ``start`` may be from ``-count`` to T: where the track has no entry, there are zeros.
    """
    padded = nn.functional.pad(track, (0, 0) * (track.dim() - 2) + (count, count))
    rows = torch.arange(len(track), device=track.device)[:, None]
    return padded[rows, count + start[:, None] + torch.arange(count, device=track.device)]
