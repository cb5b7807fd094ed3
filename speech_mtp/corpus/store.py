"""A corpus laid out for training: flat memory-mapped arrays and one JSON line per utterance.

``audio.i16`` holds every utterance one after another (16-bit, ``sample_rate``), ``f0.f32`` its pitch in Hz 100 times
a second (0 where unvoiced), ``rows.jsonl`` where each lies, its text, phonemes (string of
:func:`speech_mtp.text.phonemes.render`), voice and split. Rows are appended after their data, so that a store cut
off by a kill is valid up to its last whole row.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speech_mtp import audio
from speech_mtp.corpus.manifest import read_manifest
from speech_mtp.files import open_at
from speech_mtp.progress import progress
from speech_mtp.text.phonemes import parse

SAMPLE_RATE = 24_000
PITCH_HOP = 240


@dataclass(frozen=True)
class StoredUtterance:
    """Where one utterance lies: ``samples`` from ``start`` on in the audio, its pitch from ``pitch_start`` on.
    ``ends_ms``: where each phoneme ends, if the teacher told (None: it did not, or it read other phonemes)."""

    id: str
    voice: str
    text: str
    phonemes: str
    split: str
    start: int
    samples: int
    pitch_start: int
    ends_ms: list[int] | None = None

    @property
    def pitch_steps(self) -> int:
        return -(-self.samples // PITCH_HOP)

    def check_ends(self) -> None:
        """ValueError unless phonemes end one after another within the audio."""
        ends = self.ends_ms
        if ends is None:
            return
        milliseconds = 1000 * self.samples / SAMPLE_RATE
        if not ends or ends[0] < 0 or ends[-1] > milliseconds + 1 or any(a > b for a, b in pairwise(ends)):
            raise ValueError(
                f"{self.id}: its phonemes do not end one after another within its {milliseconds:.0f} ms ({ends}); "
                "speak the store anew."
            )


class AudioStoreWriter:
    """Appends utterances to a store; opening an existing one goes on after its last whole row."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.rows = read_rows(folder)
        samples = self.rows[-1].start + self.rows[-1].samples if self.rows else 0
        steps = self.rows[-1].pitch_start + self.rows[-1].pitch_steps if self.rows else 0
        self._audio = open_at(folder / "audio.i16", 2 * samples)
        self._pitch = open_at(folder / "f0.f32", 4 * steps)
        whole = "".join(json.dumps(asdict(row)) + "\n" for row in self.rows)
        (folder / "rows.jsonl").write_text(whole, encoding="utf-8")
        self._lines = (folder / "rows.jsonl").open("a", encoding="utf-8")
        self._samples, self._steps = samples, steps

    def append(
        self,
        id: str,
        voice: str,
        text: str,
        phonemes: str,
        split: str,
        wave: np.ndarray,
        f0_hz: np.ndarray,
        ends_ms: list[int] | None = None,
    ) -> StoredUtterance:
        """``wave [S]`` float in [-1, 1] at 24 kHz, ``f0_hz [ceil(S / 240)]`` (0 unvoiced). Raises ``ValueError`` for
        pitch of another length, and for ``ends_ms`` that are not those of ``phonemes`` in this audio."""
        row = StoredUtterance(id, voice, text, phonemes, split, self._samples, len(wave), self._steps, ends_ms)
        if len(f0_hz) != row.pitch_steps:
            raise ValueError(f"{id}: {len(f0_hz)} pitch values for {len(wave)} samples; expected {row.pitch_steps}.")
        row.check_ends()
        if ends_ms is not None and len(ends_ms) != len(parse(phonemes)):
            raise ValueError(
                f"{id}: {len(ends_ms)} ends for the phonemes {phonemes!r}; expected {len(parse(phonemes))}."
            )
        (np.clip(wave, -1, 1) * 32767).round().astype("<i2").tofile(self._audio)
        f0_hz.astype("<f4").tofile(self._pitch)
        self._audio.flush()
        self._pitch.flush()
        self._lines.write(json.dumps(asdict(row)) + "\n")
        self._lines.flush()
        self._samples += row.samples
        self._steps += row.pitch_steps
        self.rows.append(row)
        return row

    def close(self) -> None:
        for file in (self._audio, self._pitch, self._lines):
            file.close()


def read_rows(folder: Path) -> list[StoredUtterance]:
    """The whole rows of a store (a last line cut off by a kill is ignored)."""
    path = folder / "rows.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    return [StoredUtterance(**json.loads(line)) for line in lines]


def stores_in(folder: Path) -> list[Path]:
    """The stores that lie in ``folder``, or ``folder`` itself if it is one."""
    return sorted(path.parent for path in folder.glob("*/rows.jsonl")) or [folder]


def rows_in(folder: Path) -> list[StoredUtterance]:
    """The whole rows of all stores in ``folder``."""
    return [row for store in stores_in(folder) for row in read_rows(store)]


def _filled(path: Path) -> list[tuple[Path, list[StoredUtterance]]]:
    """The stores in ``path`` that hold something. Raises FileNotFoundError where none does, and ValueError for a store
    that has others in it, and for phonemes that end elsewhere than in their audio."""
    if (path / "rows.jsonl").is_file() and stores_in(path) != [path]:
        raise ValueError(f"{path} is a store of audio and has others in it; give each a folder of its own.")
    found = [(folder, rows) for folder in stores_in(path) if (rows := read_rows(folder))]
    if not found:
        raise FileNotFoundError(f"{path} holds no corpus rows; run the corpus recipe first.")
    for _, rows in found:
        for row in rows:
            row.check_ends()
    return found


class AudioStore:
    """Reads stores: several folders in a row act as one, and a folder of stores stands for all of them."""

    def __init__(self, folders: list[Path]) -> None:
        self.rows: list[StoredUtterance] = []
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._part_of: list[int] = []
        for folder, rows in [store for path in folders for store in _filled(path)]:
            self.rows += rows
            self._part_of += [len(self._parts)] * len(rows)
            self._parts.append(
                (np.memmap(folder / "audio.i16", "<i2", mode="r"), np.memmap(folder / "f0.f32", "<f4", mode="r"))
            )

    def __len__(self) -> int:
        return len(self.rows)

    def flat(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """All audio ``int16`` and all pitch ``float32`` as two arrays, and where in them every row begins."""
        audio, pitch = ([part[kind] for part in self._parts] for kind in (0, 1))
        parts = np.array(self._part_of)
        ends = [np.cumsum([0, *(len(array) for array in arrays)])[parts] for arrays in (audio, pitch)]
        starts = np.array([row.start for row in self.rows]), np.array([row.pitch_start for row in self.rows])
        return np.concatenate(audio), np.concatenate(pitch), ends[0] + starts[0], ends[1] + starts[1]

    def wave(self, index: int) -> Tensor:
        """``[S]`` float in [-1, 1]."""
        row = self.rows[index]
        audio = self._parts[self._part_of[index]][0][row.start : row.start + row.samples]
        return torch.from_numpy(audio.astype(np.float32) / 32768)

    def pitch(self, index: int) -> Tensor:
        """``[ceil(S / 240)]`` Hz, 0 where unvoiced; entry i is the pitch at sample ``240 * (i + 1)``."""
        row = self.rows[index]
        track = self._parts[self._part_of[index]][1][row.pitch_start : row.pitch_start + row.pitch_steps]
        return torch.from_numpy(track.astype(np.float32))


def store_manifest(folder: Path, out: Path) -> int:
    """Lay the corpus of ``folder`` (a manifest and its audio) out as a store in ``out``; goes on after a kill.

    Pitch is the teacher's own where the manifest has it, otherwise probabilistic YIN (librosa, Mauch and Dixon 2014).
    Returns the number of rows.
    """
    writer = AudioStoreWriter(out)
    known = {row.id for row in writer.rows}
    for row in progress(read_manifest(folder), "store", "utterance"):
        if row.id in known:
            continue
        wave, _ = audio.read(folder / row.audio, SAMPLE_RATE)
        steps = -(-len(wave) // PITCH_HOP)
        if row.f0_hz is not None and row.f0_rate_hz is not None:
            pitch = resample_pitch(np.asarray(row.f0_hz), row.f0_rate_hz, steps)
        else:
            pitch = estimate_pitch(wave.numpy(), steps)
        writer.append(row.id, row.voice, row.text, row.phonemes, row.split, wave.numpy(), pitch)
    writer.close()
    return len(writer.rows)


def resample_pitch(f0_hz: np.ndarray, rate_hz: float, steps: int) -> np.ndarray:
    """A pitch track whose value i is the middle of frame i -> ``steps`` values at the ends of 10 ms steps."""
    at = (np.arange(steps) + 1) * PITCH_HOP / SAMPLE_RATE * rate_hz - 0.5
    last = len(f0_hz) - 1
    low = np.clip(np.floor(at).astype(int), 0, last)
    high = np.clip(low + 1, 0, last)
    near = f0_hz[np.clip(np.round(at).astype(int), 0, last)]
    voiced = (f0_hz[low] > 0) & (f0_hz[high] > 0)
    return np.where(voiced, np.interp(at, np.arange(last + 1), f0_hz), near)


def estimate_pitch(wave: np.ndarray, steps: int) -> np.ndarray:
    """``wave [S]`` at 24 kHz -> ``steps`` values in Hz, 0 where unvoiced."""
    import librosa

    f0, voiced, _ = librosa.pyin(
        wave,
        fmin=60,
        fmax=420,
        sr=SAMPLE_RATE,
        frame_length=1200,
        hop_length=PITCH_HOP,
        resolution=0.2,
        n_thresholds=30,
    )
    track = np.where(voiced, np.nan_to_num(f0), 0.0)
    return track[np.clip(np.arange(steps) + 1, 0, len(track) - 1)]
