"""The manifest of a corpus: JSON lines that grow by whole lines and survive a kill.

A folder holds ``manifest.jsonl`` (one :class:`ManifestEntry` an utterance), ``rejects.jsonl`` (one :class:`Reject`
each) and the audio. Entries are written after their audio; a last line that a kill cut off is dropped when the log is
opened again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

MANIFEST = "manifest.jsonl"
REJECTS = "rejects.jsonl"


@dataclass(frozen=True)
class ManifestEntry:
    """One utterance that was spoken and kept. ``split`` is ``train`` or ``dev``.

    ``audio`` is relative to the folder of the manifest. ``phonemes`` is a string as
    :func:`speech_mtp.text.phonemes.render` writes it. ``f0_hz`` is the pitch (0 = unvoiced) at ``f0_rate_hz`` from the
    first sample on, None if the teacher does not tell it. Only recordings have ``source`` (its name in the recipe),
    ``start_s`` (where in the recording the piece was cut out), ``level_dbfs`` (RMS before levelling) and ``agreement``
    (of sound and text: :mod:`speech_mtp.corpus.align`).
    """

    id: str
    text: str
    phonemes: str
    voice: str
    seconds: float
    seed: int
    split: str
    audio: str
    licence: str
    f0_hz: list[float] | None = None
    f0_rate_hz: float | None = None
    source: str | None = None
    start_s: float | None = None
    level_dbfs: float | None = None
    agreement: float | None = None


@dataclass(frozen=True)
class Reject:
    """One utterance that was refused, and why: ``detail`` is a sentence where ``reason`` does not say all."""

    id: str
    text: str
    voice: str
    reason: str
    detail: str | None = None


class JsonLines:
    """An append-only file of JSON objects. Opening one cuts off an unfinished last line; ``with`` closes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        content = path.read_bytes()
        os.truncate(path, content.rfind(b"\n") + 1)
        self._file = path.open("a", encoding="utf-8")

    def append(self, objects: Iterable[dict[str, Any]]) -> None:
        """Write the objects, one line each, and wait until they are on the disk."""
        self._file.write("".join(json.dumps(o, ensure_ascii=False) + "\n" for o in objects))
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file; an unfinished last line is left out.

    Raises ``FileNotFoundError``, and ``ValueError`` with the line number for a whole line that is no JSON object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith("\n"):
                return
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not JSON: {error.msg}.") from error
            if not isinstance(value, dict):
                raise ValueError(f"{path}, line {number} is not a JSON object.")
            yield value


def read_manifest(folder: Path) -> list[ManifestEntry]:
    """Every entry of the corpus in ``folder``, in the order they were made. Raises as :func:`read_lines`."""
    return [ManifestEntry(**values) for values in read_lines(folder / MANIFEST)]


def read_rejects(folder: Path) -> list[Reject]:
    """Every refused utterance of the corpus in ``folder``. Raises as :func:`read_lines`."""
    return [Reject(**values) for values in read_lines(folder / REJECTS)]


def as_line(item: ManifestEntry | Reject) -> dict[str, Any]:
    """The JSON object of an entry; what is None is left out."""
    return {key: value for key, value in asdict(item).items() if value is not None}
