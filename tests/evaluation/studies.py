"""What the commands have in common that set the runs of a study side by side."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.running import refused, run


def told(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    folder: Path,
    table: Callable[[Any], str],
) -> list[list[str]]:
    """The words of each line that ``eval command`` prints of ``folder``; report and picture are what they should be."""
    report, picture = folder.parent / "report.json", folder.parent / "picture.png"
    assert run(monkeypatch, "eval", command, str(folder), "--json", str(report), "--plot", str(picture)) == 0
    said = capsys.readouterr().out
    assert table(json.loads(report.read_text())) in said
    assert picture.stat().st_size > 5_000
    return [line.split() for line in said.splitlines()]


def refused_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, empty: Path
) -> str:
    """What is said of a folder without a run."""
    empty.mkdir(exist_ok=True)
    return refused(monkeypatch, capsys, "eval", command, str(empty), "--json", str(empty / "report.json"))
