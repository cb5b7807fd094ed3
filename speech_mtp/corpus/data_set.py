"""A data set that the package ``datasets`` opens: a name on the hub or a folder, read as a stream of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from speech_mtp.plugins import nearest, require

EXTRA = "eval"
"""That brings ``datasets``."""


def open_data_set(dataset: str, config: str | None, of: str, columns: Sequence[str]) -> Any:
    """The ``columns`` of the split ``of`` of ``dataset`` in its configuration ``config``.

    Raises MissingExtra (an ImportError) without the package, and ValueError for a set that cannot be opened or lacks a
    column.
    """
    datasets = require("datasets", EXTRA)
    try:
        rows = datasets.load_dataset(dataset, config, split=of, streaming=True)
        there = rows.column_names or rows.resolve_features().column_names
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise ValueError(f"The data set {dataset!r} cannot be opened: {reason}.") from error
    for column in columns:
        if column not in there:
            raise ValueError(f"The data set {dataset!r} has no column {column!r}; {nearest(column, there)}.")
    return rows.select_columns(list(columns))
