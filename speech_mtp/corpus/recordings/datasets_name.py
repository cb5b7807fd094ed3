"""A data set that the package ``datasets`` opens: a name on the hub or a folder, read as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speech_mtp.corpus.recordings.base import Recording, RecordingSource, Unusable
from speech_mtp.plugins import nearest, require


class DatasetsName(RecordingSource):
    """``dataset``, its ``config`` and its split (``of``), and the names of its columns.

    ``speaker`` and ``key`` are columns too; without ``key`` a recording is known by its number. ``split`` is what the
    recordings become: ``train``, ``dev``, or None for a share of each. Needs the package ``datasets`` (extra ``eval``).
    """

    name = "datasets_name"

    def __init__(
        self,
        dataset: str,
        of: str = "train",
        config: str | None = None,
        audio: str = "audio",
        text: str = "text",
        speaker: str | None = None,
        key: str | None = None,
        split: str | None = None,
    ) -> None:
        if split not in ("train", "dev", None):
            raise ValueError(f"The split of the recordings is {split!r}; use train or dev, or leave it out.")
        self._columns = [column for column in (audio, text, speaker, key) if column is not None]
        self._audio, self._text, self._speaker, self._key, self._split = audio, text, speaker, key, split
        self._rows = self._opened(dataset, config, of)

    def _opened(self, dataset: str, config: str | None, of: str) -> Any:
        datasets = require("datasets", "eval")
        try:
            rows = datasets.load_dataset(dataset, config, split=of, streaming=True)
            there = rows.column_names or rows.resolve_features().column_names
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            reason = str(error).strip().split("\n")[0].rstrip(".")
            raise ValueError(f"The data set {dataset!r} cannot be opened: {reason}.") from error
        for column in self._columns:
            if column not in there:
                raise ValueError(f"The data set {dataset!r} has no column {column!r}; {nearest(column, there)}.")
        # Decoding by the package itself would need another one, torchcodec.
        return rows.select_columns(self._columns).cast_column(self._audio, datasets.Audio(decode=False))

    def recordings(self) -> Iterator[Recording | Unusable]:
        for number, row in enumerate(self._rows):
            key = str(row[self._key]) if self._key else f"{number:07}"
            text, speaker = str(row[self._text] or ""), str(row[self._speaker]) if self._speaker else ""
            try:
                yield Recording(key, _file(row[self._audio]), text, speaker, self._split)
            except (OSError, TypeError) as error:
                yield Unusable(key, f"The audio of row {number} cannot be opened: {error}.", text)


def _file(audio: dict[str, Any]) -> Path | bytes:
    """``{"bytes": ..., "path": ...}``, of which one may be None; the path may lie in an archive or on the hub."""
    if audio["bytes"] is not None:
        return bytes(audio["bytes"])
    if Path(audio["path"]).is_file():
        return Path(audio["path"])
    with require("datasets.utils.file_utils", "eval").xopen(audio["path"], "rb") as file:
        return bytes(file.read())
