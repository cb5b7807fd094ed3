"""The layout of LJSpeech: ``metadata.csv`` with lines ``id|text as written|text as read`` and ``wavs/id.wav``."""

from __future__ import annotations

from collections.abc import Iterator

from speech_mtp.corpus.recordings.base import Recording, RecordingSource, Unusable, below, file_of, folder_of


class LJSpeech(RecordingSource):
    """``folder`` holds ``metadata.csv`` and ``wavs``. The text as read is taken where there is one."""

    name = "ljspeech"

    def __init__(self, folder: str) -> None:
        self._folder = folder_of(folder, "LJSpeech's layout")
        self._metadata = file_of(self._folder / "metadata.csv", "list of recordings")

    def recordings(self) -> Iterator[Recording | Unusable]:
        with self._metadata.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield self._entry(number, line.rstrip("\n"))

    def _entry(self, number: int, line: str) -> Recording | Unusable:
        key, *texts = (part.strip() for part in line.split("|"))
        if len(texts) not in (1, 2):
            reason = f"metadata.csv, line {number} has {len(texts) + 1} parts; write id|text or id|text|text as read."
            return Unusable(f"line-{number}", reason, line)
        path = below(self._folder, f"wavs/{key}.wav") if key else None
        if path is None:
            return Unusable(f"line-{number}", f"metadata.csv, line {number} names no file in wavs: {key!r}.", texts[-1])
        return Recording(key, path, texts[-1] or texts[0])
