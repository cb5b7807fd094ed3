"""The layout of LibriTTS: ``split/speaker/chapter/*.wav``, each beside its ``.normalized.txt``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from speech_mtp.corpus.recordings.base import Recording, RecordingSource, Unusable, folder_of, split_named
from speech_mtp.plugins import nearest


class LibriTTS(RecordingSource):
    """``folder`` holds the splits (``train-clean-100``, ...); ``splits`` None takes all that are there.

    ``text`` is the file read: numbers written out (``normalized``) or the book's own words (``original``). Splits whose
    name begins with ``dev`` or ``test`` are dev.
    """

    name = "libritts"

    def __init__(
        self, folder: str, splits: list[str] | None = None, text: Literal["normalized", "original"] = "normalized"
    ) -> None:
        if text not in ("normalized", "original"):
            raise ValueError(f"The text of LibriTTS is {text!r}; use normalized or original.")
        self._folder = folder_of(folder, "LibriTTS's layout")
        there = sorted(path.name for path in self._folder.iterdir() if path.is_dir())
        for split in splits or ():
            if split not in there:
                raise FileNotFoundError(f"{folder} has no split {split!r}; {nearest(split, there)}.")
        self._splits = splits or there
        self._suffix = f".{text}.txt"
        if not any(self._stems(split) for split in self._splits):
            raise ValueError(f"{folder} holds no split/speaker/chapter/*.wav; give the folder that holds the splits.")

    def recordings(self) -> Iterator[Recording | Unusable]:
        for split in self._splits:
            for stem in self._stems(split):
                yield self._entry(split, stem)

    def _stems(self, split: str) -> list[Path]:
        """Of the recordings and of the texts, so that one without the other is found."""
        found = (self._folder / split).glob("*/*/*")
        return sorted({stem for path in found if (stem := _stem(path, (".wav", self._suffix)))})

    def _entry(self, split: str, stem: Path) -> Recording | Unusable:
        audio, words = (stem.with_name(stem.name + suffix) for suffix in (".wav", self._suffix))
        key, speaker = stem.name, stem.parts[-3]
        try:
            text = words.read_text(encoding="utf-8-sig").strip()
        except (OSError, UnicodeDecodeError):
            return Unusable(key, f"{words.relative_to(self._folder)} cannot be read as text in UTF-8.")
        return Recording(key, audio, text, speaker, split_named(split))


def _stem(path: Path, suffixes: tuple[str, str]) -> Path | None:
    ending = next((suffix for suffix in suffixes if path.name.endswith(suffix)), None)
    return path.with_name(path.name.removesuffix(ending)) if ending else None
