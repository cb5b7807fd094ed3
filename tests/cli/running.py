"""Running the program inside the test process."""

from __future__ import annotations

import re
import sys

import pytest

from speech_mtp import cli


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code."""
    monkeypatch.setattr(sys, "argv", ["speech-mtp", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The sentence on stderr; exit code 2 and nothing else said."""
    assert run(monkeypatch, *arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("speech-mtp: ")
    assert "Traceback" not in said.err
    return said.err


def besides_progress(err: str) -> str:
    """What a command wrote to stderr, without progress bars."""
    return "".join(part for part in re.split(r"[\r\n]", err) if not re.search(r"\d+%\|", part))
