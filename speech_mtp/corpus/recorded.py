"""One recording and its text -> utterances: aligned by the phoneme CTC of a codec, cut, checked and stored."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speech_mtp import audio, hub
from speech_mtp.codecs.base import Codec
from speech_mtp.corpus.align import Firings, agreement, firings
from speech_mtp.corpus.checks import AudioRules, fit, flat_tops, levelled
from speech_mtp.corpus.cutting import HeardWord, Piece, PieceRules, cut, silences
from speech_mtp.corpus.manifest import ManifestEntry, Reject
from speech_mtp.corpus.processes import plugged
from speech_mtp.corpus.recordings.base import Recording
from speech_mtp.corpus.store import PITCH_HOP, estimate_pitch
from speech_mtp.corpus.teachers.base import SAMPLE_RATE, Utterance
from speech_mtp.corpus.texts import split_of
from speech_mtp.text.g2p.base import G2P, WORD, read_text
from speech_mtp.text.markup import plain
from speech_mtp.text.normalize import check_text, normalize
from speech_mtp.text.phonemes import Unit, render
from speech_mtp.text.split import split_sentences

MAX_CHARS = 200_000
"""Of one recording's text: some three hours of speech."""


@dataclass(frozen=True)
class RecordingJob:
    """A recording to be imported. Its utterances have ``id`` or begin with it; those without a split of their own are
    divided by ``dev_fraction``."""

    id: str
    voice: str
    recording: Recording
    source: str
    licence: str
    dev_fraction: float


@dataclass(frozen=True)
class Treatment:
    """What is done with every recording: folder, plug-in spec in JSON, codec's name, rules, whether to find pitch."""

    out: Path
    g2p: str
    aligner: str
    pieces: PieceRules
    rules: AudioRules
    pitch: bool = True


@dataclass(frozen=True)
class Imported:
    """What the recording ``id`` of ``seconds`` (0: unreadable) gave."""

    id: str
    seconds: float
    items: list[ManifestEntry | Reject]


@dataclass(frozen=True)
class _Sound:
    """A recording at 24 kHz: ``wave [S]``, and the seconds at which the file itself is clipped."""

    wave: NDArray[np.float32]
    clipped_s: NDArray[np.float64]
    rate_hz: int

    @property
    def seconds(self) -> float:
        return len(self.wave) / SAMPLE_RATE

    def clipped(self, start_s: float, stop_s: float) -> float:
        """Fraction of the file's samples that are clipped between two times."""
        count = np.searchsorted(self.clipped_s, stop_s) - np.searchsorted(self.clipped_s, start_s)
        return float(count / ((stop_s - start_s) * self.rate_hz))


@dataclass(frozen=True)
class _Word:
    """A word as it is read aloud, with its mark, and its phonemes and pauses."""

    text: str
    units: list[Unit]


@dataclass(frozen=True)
class _Aligned:
    """A recording and its words, what the codec heard (``log_probs [F, V]`` at ``rate_hz``), and where in it the
    words' units fire."""

    sound: _Sound
    words: list[_Word]
    log_probs: Tensor
    fired: Firings
    rate_hz: float


class _Refusal(Exception):
    """The whole recording cannot be used: a short ``reason`` to count by, and a sentence."""

    def __init__(self, reason: str, detail: object = None) -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, None if detail is None else " ".join(str(detail).split())


def import_recording(job: RecordingJob, treatment: Treatment) -> Imported:
    """1. read the audio and the text, 2. align them, 3. cut where words and silences allow it, 4. store the pieces.

    Never raises for a recording: what cannot be used is a :class:`Reject`.
    """
    seconds = 0.0
    try:
        sound = _read_audio(job.recording, treatment)
        seconds = sound.seconds
        aligned = _align(sound, _read_words(job.recording.text, plugged("text.g2p", treatment.g2p)), treatment)
    except _Refusal as refusal:
        return Imported(job.id, seconds, [_reject(job.id, job.recording.text, job, refusal)])
    quiet = silences(sound.wave, treatment.pieces.min_silence_s)
    edges_s = (treatment.rules.lead_s, treatment.rules.tail_s)
    pieces = cut(_spoken(aligned), quiet, seconds, treatment.pieces, treatment.rules.max_pause_s, edges_s)
    ids = [f"{job.id}-{number:03}" for number in range(len(pieces))] if len(pieces) > 1 else [job.id]
    return Imported(
        job.id, seconds, [_item(id, piece, aligned, job, treatment) for id, piece in zip(ids, pieces, strict=True)]
    )


def _item(id: str, piece: Piece, aligned: _Aligned, job: RecordingJob, treatment: Treatment) -> ManifestEntry | Reject:
    """The piece written to its file, or why not."""
    text = " ".join(word.text for word in aligned.words[piece.first : piece.last])
    raw = aligned.sound.wave[round(piece.start_s * SAMPLE_RATE) : round(piece.stop_s * SAMPLE_RATE)]
    try:
        agrees = _agreement(piece, aligned, treatment.pieces)
        wave = _checked(piece, raw, text, aligned.sound, treatment.rules)
        phonemes = render(_units(text, plugged("text.g2p", treatment.g2p)))
    except _Refusal as refusal:
        return _reject(id, text, job, refusal)
    name = f"audio/{job.voice}/{hashlib.blake2b(id.encode(), digest_size=1).hexdigest()}/{id}.flac"
    (treatment.out / name).parent.mkdir(parents=True, exist_ok=True)
    audio.write(treatment.out / name, torch.from_numpy(wave), SAMPLE_RATE)
    return ManifestEntry(
        id=id,
        text=text,
        phonemes=phonemes,
        voice=job.voice,
        seconds=round(len(wave) / SAMPLE_RATE, 4),
        seed=0,
        split=job.recording.split or split_of(text, job.dev_fraction),
        audio=name,
        licence=job.licence,
        f0_hz=_pitch(wave) if treatment.pitch else None,
        f0_rate_hz=SAMPLE_RATE / PITCH_HOP if treatment.pitch else None,
        source=job.source,
        start_s=round(piece.start_s, 2),
        level_dbfs=round(10 * float(np.log10((raw.astype(np.float64) ** 2).mean())), 1),
        agreement=round(agrees, 3),
    )


def _reject(id: str, text: str, job: RecordingJob, refusal: _Refusal) -> Reject:
    return Reject(id, text, job.voice, refusal.reason, refusal.detail)


def _read_audio(recording: Recording, treatment: Treatment) -> _Sound:
    source = recording.audio
    name = f"The audio of {recording.key}" if isinstance(source, bytes) else str(source)
    if isinstance(source, Path) and not source.is_file():
        raise _Refusal("no audio file", f"There is no audio file {source}.")
    try:
        wave, rate = audio.decode(
            BytesIO(source) if isinstance(source, bytes) else source,
            name,
            mono=True,
            longest_s=60 * treatment.pieces.longest_minutes,
        )
    except (ValueError, OSError) as error:
        raise _Refusal("unreadable audio", error) from error
    if float(wave.abs().max()) < treatment.rules.min_peak:
        raise _Refusal("silent")
    return _Sound(audio.resample(wave, rate, SAMPLE_RATE).numpy(), flat_tops(wave.numpy()) / rate, rate)


def _read_words(text: str, g2p: G2P) -> list[_Word]:
    """``text`` as the house reads it aloud, sentence by sentence."""
    try:
        check_text(text, MAX_CHARS)
        sentences = [normalize(sentence) for sentence in split_sentences(plain(text))]
    except ValueError as error:
        raise _Refusal("unreadable text", error) from error
    words = []
    for sentence in sentences:
        units = _units(sentence, g2p)
        for word in WORD.finditer(sentence):
            inside = [unit for unit in units if word.start() <= unit.char_start < word.end()]
            words.append(_Word(word.group(), inside))
    return words


def _units(text: str, g2p: G2P) -> list[Unit]:
    """The units of normalised ``text``, read in one go as the stages that train on it read it."""
    try:
        return read_text(g2p, text)
    except ValueError as error:
        raise _Refusal("unreadable text", error) from error


def _align(sound: _Sound, words: list[_Word], treatment: Treatment) -> _Aligned:
    codec = _codec(treatment.aligner)
    wave = torch.from_numpy(levelled(sound.wave, treatment.rules.level_dbfs))
    try:
        log_probs = codec.phonemes_heard(audio.resample(wave, SAMPLE_RATE, codec.spec.sample_rate))
        fired = firings(log_probs, _ids(words))
    except RuntimeError as error:  # of torch, mostly for want of memory
        raise _Refusal("cannot be aligned", error) from error
    if fired is None:
        raise _Refusal("text does not match", f"{sound.seconds:.1f} seconds are too short for {len(words)} words.")
    return _Aligned(sound, words, log_probs, fired, codec.spec.frame_rate_hz)


def _ids(words: list[_Word]) -> Tensor:
    return torch.tensor([unit.id for word in words for unit in word.units])


def _spoken(aligned: _Aligned) -> list[HeardWord]:
    """From the first to the last firing of each word's phonemes; its pauses are outside."""
    found, at, fired = [], 0, aligned.fired
    for word in aligned.words:
        sounds = [at + i for i, unit in enumerate(word.units) if not unit.is_pause]
        start, stop = fired.starts[sounds[0]], fired.ends[sounds[-1]] + 1
        found.append(HeardWord(word.text, start / aligned.rate_hz, stop / aligned.rate_hz))
        at += len(word.units)
    return found


def _agreement(piece: Piece, aligned: _Aligned, rules: PieceRules) -> float:
    """How well the sound and the words of a piece fit. Raises ``_Refusal`` where they do not."""
    if piece.seconds > rules.max_seconds:
        detail = f"{piece.seconds:.1f} seconds hold no silence between two words; {rules.max_seconds:g} are allowed."
        raise _Refusal("no silence to cut at", detail)
    frames = slice(round(piece.start_s * aligned.rate_hz), round(piece.stop_s * aligned.rate_hz))
    margins = aligned.fired.margins[frames]
    agrees = agreement(aligned.log_probs[frames], _ids(aligned.words[piece.first : piece.last]), margins)
    second = min(len(margins), round(aligned.rate_hz))
    worst = float(margins.unfold(0, second, 1).mean(1).min())
    if agrees < rules.min_agreement:
        detail = f"Sound and text agree by {agrees:.2f}; {rules.min_agreement:g} or more is needed."
        raise _Refusal("text does not match", detail)
    if worst < rules.worst_second:
        detail = f"A second of it lies {-worst:.1f} nats a frame off the text; {-rules.worst_second:g} are allowed."
        raise _Refusal("text does not match", detail)
    return agrees


def _checked(
    piece: Piece, wave: NDArray[np.float32], text: str, sound: _Sound, rules: AudioRules
) -> NDArray[np.float32]:
    """The piece trimmed and levelled. Raises ``_Refusal`` where it is not fit to learn from."""
    if sound.clipped(piece.start_s, piece.stop_s) > rules.clipped:
        raise _Refusal("clipped")
    utterance, reason = fit(Utterance(wave), text, rules)
    if reason is not None:
        raise _Refusal(reason)
    return utterance.wave


def _pitch(wave: NDArray[np.float32]) -> list[float]:
    """At the middle of each step: half a step of silence before the wave moves the ends of the steps there."""
    steps = -(-len(wave) // PITCH_HOP)
    return [round(float(hz), 1) for hz in estimate_pitch(np.pad(wave, (PITCH_HOP // 2, 0)), steps)]


@cache
def _codec(name: str) -> Codec:
    return hub.load_aligner(name)
