"""Measurements that survive an interruption: a file of JSON lines, one per finished piece of work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_SETTINGS = "measured_with"
"""The key of the first line, by which a file is known as a journal."""


class Journal:
    """``rows`` that were added to ``path``, now or by an earlier run with the same ``settings``.

    The first line holds the settings. A line that an interruption left half-written is dropped. Raises ValueError when
    the file there belongs to other settings or is no journal, which is left as it is, and OSError when it cannot be
    written. One run at a time.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.settings = wanted = json.loads(json.dumps(settings))
        found = path.read_bytes() if path.exists() else b""
        if not found:
            path.write_bytes(_line({_SETTINGS: wanted}))
        whole = found[: found.rfind(b"\n") + 1]
        lines = self._parsed(whole) if found else [{_SETTINGS: wanted}]
        if lines[0][_SETTINGS] != wanted:
            before = lines[0][_SETTINGS]
            other = [key for key in {**wanted, **before} if wanted.get(key) != before.get(key)]
            raise ValueError(
                f"{path} holds measurements with another setting of {', '.join(other)}; "
                "remove it, or give another name to this one's report."
            )
        if whole != found:
            path.write_bytes(whole)
        self.rows: list[dict[str, Any]] = lines[1:]

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row; it is in the file when this returns."""
        with self.path.open("ab") as file:
            file.write(_line(row))
        self.rows.append(json.loads(json.dumps(row)))

    def done(self, all_used: bool = True) -> None:
        """Remove the file once its report is written, unless it holds more than went into that."""
        if all_used:
            self.path.unlink(missing_ok=True)
        else:
            print(f"{self.path} holds more than this report, for which it is kept")

    def _parsed(self, whole: bytes) -> list[dict[str, Any]]:
        try:
            lines = [json.loads(line) for line in whole.split(b"\n")[:-1]]
        except ValueError:
            lines = []
        if not lines or not all(isinstance(line, dict) for line in lines) or _SETTINGS not in lines[0]:
            raise ValueError(
                f"{self.path} is damaged or no file of measurements; move it away, or give the report another name."
            )
        return lines


def computed_by() -> dict[str, Any]:
    """Settings that every measurement has: what rounds otherwise, and so may draw otherwise."""
    import torch

    return {"threads": torch.get_num_threads(), "torch": torch.__version__}


def _line(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()
