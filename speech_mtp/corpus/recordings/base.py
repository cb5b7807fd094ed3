"""The interface of a source of recordings: audio and text that somebody else has made."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Recording:
    """One recording of any length: ``audio`` is a file or the bytes of one, of any sample rate.

    ``key`` names it in its source, ``speaker`` is empty where there is only one. ``split`` is ``train`` or ``dev``;
    None leaves that to the importer. The file need not exist and the text need not be readable: the importer looks.
    """

    key: str
    audio: Path | bytes
    text: str
    speaker: str = ""
    split: str | None = None


@dataclass(frozen=True)
class Unusable:
    """An entry of a source that is no recording: ``key`` says where, ``reason`` in a sentence why."""

    key: str
    reason: str
    text: str = ""


class RecordingSource(ABC):
    """One layout of recordings. Construction checks what a recipe can get wrong: folders, files, columns.

    Raises ``ValueError`` or ``FileNotFoundError`` for these. Single entries never raise: they are :class:`Unusable`.
    """

    name: str

    @abstractmethod
    def recordings(self) -> Iterator[Recording | Unusable]:
        """Every entry, in the same order each time."""


def folder_of(path: str | os.PathLike[str], layout: str) -> Path:
    """``path`` as a folder. Raises ``FileNotFoundError``, saying that ``layout`` was looked for."""
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder} with recordings ({layout}); set its `folder`.")
    return folder


def file_of(path: Path, what: str) -> Path:
    """``path`` as a file that can be read as text in UTF-8. Raises ``FileNotFoundError`` and ``ValueError``."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no {what} {path}.")
    try:
        with path.open(encoding="utf-8-sig") as file:
            while file.read(1 << 20):
                continue
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8; convert it first.") from error
    return path


def below(folder: Path, name: str) -> Path | None:
    """The file ``name`` in ``folder``, None if it would lie outside."""
    inside = os.path.normpath(name)
    if os.path.isabs(inside) or inside.split(os.sep)[0] in ("..", "."):
        return None
    return folder / inside


def split_named(name: str) -> str | None:
    """``train`` or ``dev`` for the usual names of splits ("train-clean-100", "validation", "test"), else None."""
    start = name.strip().lower()
    if start.startswith("train"):
        return "train"
    return "dev" if start.startswith(("dev", "valid", "test", "eval")) else None
