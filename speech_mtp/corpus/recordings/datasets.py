"""A data set that the package ``datasets`` opens: a name on the hub or a folder, read as a stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speech_mtp.corpus.data_set import EXTRA, open_data_set
from speech_mtp.corpus.recordings.base import Recording, RecordingSource, Unusable
from speech_mtp.plugins import require


class Datasets(RecordingSource):
    """``dataset``, its ``config`` and its split (``of``), and the names of its columns.

    ``speaker`` and ``key`` are columns too; without ``key`` a recording is known by its number. ``split`` is what the
    recordings become: ``train``, ``dev``, or None for a share of each. Errors as for
    :func:`speech_mtp.corpus.data_set.open_data_set`.
    """

    name = "datasets"

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
        self._audio, self._text, self._speaker, self._key, self._split = audio, text, speaker, key, split
        rows = open_data_set(dataset, config, of, [name for name in (audio, text, speaker, key) if name is not None])
        # Decoding by the package itself would need another one, torchcodec.
        self._rows = rows.cast_column(audio, require("datasets", EXTRA).Audio(decode=False))

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
    with require("datasets.utils.file_utils", EXTRA).xopen(audio["path"], "rb") as file:
        return bytes(file.read())
