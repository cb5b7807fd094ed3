"""How far work is: plain lines now and then where there is no terminal, and the items as they are."""

from __future__ import annotations

import io

import pytest

from speech_mtp import progress as module
from speech_mtp.progress import Telling, progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that pass with every look at the clock."""
    now, step = [0.0], [10.0]

    def look() -> float:
        now[0] += step[0]
        return now[0]

    monkeypatch.setattr(module, "monotonic", look)
    return step


def test_plain_lines_come_every_half_minute(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress([7, 8, 9, 10, 11, 12, 13], "hearing")) == [7, 8, 9, 10, 11, 12, 13]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == ["hearing: 3 of 7, 40 s left", "hearing: 6 of 7, 10 s left"]


def test_work_of_unknown_length_is_counted(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(iter("abc"), "writing")) == ["a", "b", "c"]
    assert capsys.readouterr().err == "writing: 3\n"


def test_short_work_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    clock[0] = 0.1
    assert list(progress(range(50), "hearing")) == list(range(50))
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    assert list(progress([1, 2], "hearing", "wave")) == [1, 2]
    assert "hearing: 100%" in terminal.getvalue()
    Telling()("content given phonemes")
    assert terminal.getvalue().endswith(f"\r{'content given phonemes':<60}")


def test_telling_has_a_line_of_its_own_now_and_then(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    tell = Telling()
    for word in "abcdef":
        tell(word)
    assert capsys.readouterr().err.split() == ["c", "f"]
