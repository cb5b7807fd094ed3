"""Recordings to evaluate on: folders of audio files, corpora and corpora laid out for training.

A folder of audio files has one folder per voice (or holds the files of one voice itself); the text of ``a.wav`` may
stand beside it in ``a.txt``.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from speech_mtp import audio
from speech_mtp.corpus.manifest import MANIFEST, read_manifest
from speech_mtp.corpus.store import SAMPLE_RATE, AudioStore
from speech_mtp.corpus.texts import stable_fraction
from speech_mtp.text.phonemes import parse

AUDIO = (".wav", ".flac", ".ogg")
Told = tuple[list[int], list[int]]
"""Phonemes (ids of :data:`speech_mtp.text.phonemes.SYMBOLS`) and the millisecond at which each ends."""
Recording = tuple[str, str | None, Tensor, Told | None]
"""Voice, text if it is known, wave ``[S]``, what its teacher told of its phonemes."""


def from_folder(folder: Path, sample_rate: int, per_voice: int) -> Iterator[Recording]:
    """At most ``per_voice`` recordings of each voice. Raises as :func:`speech_mtp.audio.read`, and for no audio."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}.")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO)
    if not paths:
        raise ValueError(f"{folder} holds no audio; give a folder with {', '.join(AUDIO)} files.")
    taken: dict[str, int] = {}
    for path in paths:
        voice = path.parent.name
        taken[voice] = taken.get(voice, 0) + 1
        if taken[voice] <= per_voice:
            words = path.with_suffix(".txt")
            text = words.read_text(encoding="utf-8").strip() if words.is_file() else None
            yield voice, text, audio.read(path, sample_rate)[0], None


def from_corpus(folder: Path, split: str, sample_rate: int, per_voice: int) -> Iterator[Recording]:
    """At most ``per_voice`` recordings of each voice of a ``split``; the voices get the same sentences where they can.

    ``folder`` is a corpus or one laid out for training; it is resampled to ``sample_rate``. Raises ``ValueError`` if it
    has nothing of that split.
    """
    if (folder / MANIFEST).is_file():
        made = read_manifest(folder)
        found = [(row.voice, row.text, i) for i, row in enumerate(made) if row.split == split]
        for voice, text, i in _chosen(found, folder, split, per_voice):
            wave, rate = audio.read(folder / made[i].audio)
            yield voice, text, audio.resample(wave, rate, sample_rate), None
        return
    store = AudioStore([folder])
    found = [(row.voice, row.text, i) for i, row in enumerate(store.rows) if row.split == split]
    for voice, text, i in _chosen(found, folder, split, per_voice):
        row = store.rows[i]
        told = None if row.ends_ms is None else ([unit.id for unit in parse(row.phonemes)], row.ends_ms)
        yield voice, text, audio.resample(store.wave(i), SAMPLE_RATE, sample_rate), told


def _chosen(found: list[tuple[str, str, int]], folder: Path, split: str, per_voice: int) -> list[tuple[str, str, int]]:
    """A stable choice by sentence, sentences of several voices first."""
    if not found:
        raise ValueError(f"{folder} has no {split} utterance; name another split.")
    voices_of: dict[str, int] = {}
    for _, text, _ in found:
        voices_of[text] = voices_of.get(text, 0) + 1
    order = sorted(found, key=lambda row: (-voices_of[row[1]], stable_fraction(row[1])))
    by_voice: dict[str, list[tuple[str, str, int]]] = {}
    for row in order:
        by_voice.setdefault(row[0], []).append(row)
    return [row for rows in by_voice.values() for row in rows[:per_voice]]
