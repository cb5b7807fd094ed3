"""Text files: each a document, or a line of a JSON-lines file."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speech_mtp.corpus.documents.base import Document, DocumentSource
from speech_mtp.corpus.manifest import read_lines

NOT_STATED = "not stated"


class Files(DocumentSource):
    """``paths`` are files or patterns (``**`` for all folders below). Of ``.jsonl`` files each line is a document, its
    text under ``field``; it was cut if ``ended`` is false. Raises FileNotFoundError for a path that matches no file."""

    def __init__(self, paths: list[str], field: str = "text", licence: str = NOT_STATED) -> None:
        self.field, self.licence = field, licence
        self.paths = [path for pattern in paths for path in self._matching(pattern)]

    def stamp(self) -> Any:
        states = [(path.as_posix(), path.stat()) for path in self.paths]
        return [self.licence, [[name, state.st_size, state.st_mtime_ns] for name, state in states]]

    def documents(self) -> Iterator[Document]:
        for path in self.paths:
            if path.suffix == ".jsonl":
                yield from self._lines(path)
            else:
                text = read_text_file(path)
                yield Document(text, text)  # where a file lies does not matter, and copies of it are in one split

    def _matching(self, pattern: str) -> list[Path]:
        found = sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file())
        if not found:
            raise FileNotFoundError(f"There is no text file {pattern}; name files or a pattern such as texts/**/*.txt.")
        return found

    def _lines(self, path: Path) -> Iterator[Document]:
        for number, line in enumerate(read_lines(path), start=1):
            text = line.get(self.field)
            if not isinstance(text, str):
                raise ValueError(f"{path}, line {number} has no text under {self.field!r}; set another field.")
            yield Document(text, text, line.get("ended", True) is not False)


def read_text_file(path: Path) -> str:
    """What ``path`` holds. Raises ValueError, with one sentence, for what is not text in UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8; leave it out.") from error
