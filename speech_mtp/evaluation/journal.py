"""Measurements that survive an interruption: a file of JSON lines, one per finished piece of work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Journal:
    """``rows`` that were added to ``path``, now or by an earlier run with the same ``settings``.

    The first line holds the settings. A line that an interruption left half-written is dropped. Raises ValueError when
    the file there belongs to other settings, and OSError when it cannot be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.settings = wanted = json.loads(json.dumps(settings))
        lines = self._read()
        if not lines:
            path.write_text(_line(wanted), encoding="utf-8")
        elif lines[0] != wanted:
            other = [key for key in {**wanted, **lines[0]} if wanted.get(key) != lines[0].get(key)]
            raise ValueError(
                f"{path} holds measurements with another setting of {', '.join(other)}; "
                "remove it, or give another name to this one's report."
            )
        self.rows: list[dict[str, Any]] = lines[1:]

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row; it is in the file when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(row))
        self.rows.append(json.loads(json.dumps(row)))

    def _read(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            self.path.write_text(whole, encoding="utf-8")
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise ValueError(f"{self.path} is damaged or no file of measurements; remove it.") from error
        if not all(isinstance(line, dict) for line in lines):
            raise ValueError(f"{self.path} is damaged or no file of measurements; remove it.")
        return lines


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"
