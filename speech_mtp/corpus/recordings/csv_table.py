"""A table of recordings: a CSV or TSV file with a line of column names, and audio files beside or below it."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from speech_mtp.corpus.recordings.base import Recording, RecordingSource, Unusable, below, file_of, split_named
from speech_mtp.plugins import nearest


class CsvTable(RecordingSource):
    """``file`` ends in ``.csv`` (commas) or ``.tsv`` (tabs). The columns ``audio`` and ``text`` are needed; those of
    ``speaker``, ``split``, ``language`` and ``key`` are named where there are any.

    Audio files are named relative to the table and lie in its folder or below. Without ``key`` a recording is known
    by its file's name.
    """

    name = "csv_table"

    def __init__(
        self,
        file: str,
        audio: str = "audio",
        text: str = "text",
        speaker: str | None = None,
        split: str | None = None,
        language: str | None = None,
        key: str | None = None,
    ) -> None:
        if Path(file).suffix.lower() not in (".csv", ".tsv"):
            raise ValueError(f"{file} is no table; its name must end in .csv (commas) or .tsv (tabs).")
        self._file = file_of(Path(file), "table of recordings")
        self._delimiter = "\t" if self._file.suffix.lower() == ".tsv" else ","
        self._audio, self._text, self._speaker, self._split, self._language, self._key = (
            audio, text, speaker, split, language, key,
        )  # fmt: skip
        there = self._check()
        for column in (audio, text, speaker, split, language, key):
            if column is not None and column not in there:
                raise ValueError(f"{file} has no column {column!r}; {nearest(column, there)}.")

    def _check(self) -> list[str]:
        """The columns of a table that can be read to its end."""
        rows = self._rows()
        try:
            columns = list(next(rows, (0, {}))[1])
            for _ in rows:
                continue
        except csv.Error as error:
            raise ValueError(f"{self._file} cannot be read as a table: {error}; look for a stray quote.") from error
        return columns

    def _rows(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Line number and fields; what a line lacks is empty."""
        with self._file.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, restkey="", restval="", delimiter=self._delimiter)
            for row in rows:
                yield rows.line_num, {column: row[column].strip() for column in rows.fieldnames or () if column}

    def recordings(self) -> Iterator[Recording | Unusable]:
        for line, row in self._rows():
            yield self._entry(line, row)

    def _entry(self, line: int, row: dict[str, str]) -> Recording | Unusable:
        where = f"{self._file.name}, line {line}"
        path = below(self._file.parent, row[self._audio])
        if path is None:
            reason = f"{where} names no file in the folder of the table: {row[self._audio]!r}."
            return Unusable(f"line-{line}", reason, row[self._text])
        language = row[self._language] if self._language else "en"
        if not language.lower().startswith("en"):
            return Unusable(f"line-{line}", f"{where} is {language!r}, and only English can be read.", row[self._text])
        split = split_named(row[self._split]) if self._split else None
        if self._split and split is None:
            return Unusable(
                f"line-{line}", f"{where} has the split {row[self._split]!r}; use train or dev.", row[self._text]
            )
        key = row[self._key] if self._key else str(Path(row[self._audio]).with_suffix(""))
        return Recording(key, path, row[self._text], row[self._speaker] if self._speaker else "", split)
