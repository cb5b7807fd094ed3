"""Where the documents of a text corpus come from: one file a source, found by the folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple


class Document(NamedTuple):
    """A text that is read as a whole. ``key`` decides its split: documents of one key are in the same. A document that
    was cut has not ``ended``: nothing says that it stops there."""

    key: str
    text: str
    ended: bool = True


class DocumentSource(ABC):
    """Yields documents. What it needs is checked when it is constructed, before any work."""

    licence: str
    """Of the texts, for the manifest."""

    def stamp(self) -> Any:
        """What tells these documents from those of another time, as JSON."""
        return self.licence

    @abstractmethod
    def documents(self) -> Iterator[Document]:
        """All documents, empty ones included, in an order that is always the same."""
