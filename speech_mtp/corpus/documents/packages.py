"""The docstrings of installed packages: prose about many things, of licences that the packages state."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from speech_mtp.corpus.documents.base import Document, DocumentSource
from speech_mtp.corpus.documents.stdlib import docstrings

TESTS = {"test", "tests", "testing"}


class Packages(DocumentSource):
    """``names`` are distributions as they are installed (``numpy``); each file of one is a document, without its code,
    tests left out. Raises FileNotFoundError for one that is not installed."""

    def __init__(self, names: list[str]) -> None:
        if isinstance(names, str):
            raise ValueError(f"names is {names!r}; give a list of packages: [{names}].")
        self._found = [_distribution(name) for name in names]
        self.licence = "; ".join(f"{name} {found.version}, {_licence(found)}" for name, found in self._named())

    def stamp(self) -> Any:
        return [self.licence]

    def _named(self) -> Iterator[tuple[str, metadata.Distribution]]:
        yield from ((found.metadata["Name"], found) for found in self._found)

    def documents(self) -> Iterator[Document]:
        for name, found in self._named():
            for file in sorted(found.files or [], key=str):
                if file.suffix != ".py" or TESTS & set(file.parts):
                    continue
                path = Path(str(found.locate_file(file)))
                if path.is_file():
                    yield Document(f"{name}/{file}", docstrings(path.read_text(encoding="utf-8", errors="replace")))


def _distribution(name: str) -> metadata.Distribution:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError as error:
        raise FileNotFoundError(f"The package {name!r} is not installed; install it, or leave it out.") from error


def _licence(found: metadata.Distribution) -> str:
    """In the words of the package, if it says so in a line."""
    known = found.metadata
    stated = [known[key].strip() for key in ("License-Expression", "License") if key in known]
    classified = [line.split("::")[-1].strip() for line in known.get_all("Classifier") or [] if "License ::" in line]
    return next((words for words in (*stated, *classified) if words and "\n" not in words), "licence not stated")
