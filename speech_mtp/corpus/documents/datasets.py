"""Any data set of the package ``datasets``: a name on its hub, or a local folder."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from speech_mtp.corpus.data_set import open_data_set
from speech_mtp.corpus.documents.base import Document, DocumentSource
from speech_mtp.corpus.documents.files import NOT_STATED


class Datasets(DocumentSource):
    """The rows of the split ``of`` of ``dataset`` (of its configuration ``config``), read as a stream; the text is in
    the column ``text``. ``limit`` keeps the first rows. Errors as for
    :func:`speech_mtp.corpus.data_set.open_data_set`, and ValueError for a row without text."""

    def __init__(
        self,
        dataset: str,
        of: str = "train",
        config: str | None = None,
        text: str = "text",
        limit: int | None = None,
        licence: str = NOT_STATED,
    ) -> None:
        self.dataset, self.column, self.limit, self.licence = dataset, text, limit, licence
        self._rows = open_data_set(dataset, config, of, [text])

    def documents(self) -> Iterator[Document]:
        for number, row in enumerate(islice(self._rows, self.limit)):
            text = row[self.column]
            if not isinstance(text, str):
                raise ValueError(f"Row {number} of the data set {self.dataset!r} has no text in {self.column!r}.")
            yield Document(text, text)
