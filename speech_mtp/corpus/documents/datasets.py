"""Any data set of the library ``datasets``: a name on its hub, or a local folder."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from speech_mtp import plugins
from speech_mtp.corpus.documents.base import Document, DocumentSource
from speech_mtp.corpus.documents.files import NOT_STATED


class Datasets(DocumentSource):
    """The rows of ``split`` of the data set ``path`` (of its configuration ``subset``), read as a stream; the text is
    under ``field``. ``limit`` keeps the first rows.

    Raises MissingExtra (an ImportError) without the library, FileNotFoundError for a set that cannot be opened and
    ValueError for rows without such a field.
    """

    def __init__(
        self,
        path: str,
        subset: str | None = None,
        split: str = "train",
        field: str = "text",
        limit: int | None = None,
        licence: str = NOT_STATED,
    ) -> None:
        library: Any = plugins.require("datasets", "eval")
        self.path, self.field, self.limit, self.licence = path, field, limit, licence
        try:
            self._rows: Any = library.load_dataset(path, subset, split=split, streaming=True)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise FileNotFoundError(f"The data set {path!r} cannot be opened ({reason}); check its name.") from error

    def documents(self) -> Iterator[Document]:
        for row in islice(self._rows, self.limit):
            text = row.get(self.field)
            if not isinstance(text, str):
                hint = plugins.nearest(self.field, row)
                raise ValueError(f"The data set {self.path!r} has no text under {self.field!r}; {hint}.")
            yield Document(text, text)
