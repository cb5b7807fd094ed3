"""How far work is: plain lines now and then where there is no terminal, and the items as they are."""

from __future__ import annotations

import io

import pytest

from speech_mtp import progress as module
from speech_mtp.progress import Progress, Telling, progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which a test moves."""
    now = [0.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    return now


def test_plain_lines_come_every_half_minute(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for item in progress([7, 8, 9, 10, 11, 12, 13], "hearing"):
        found.append(item)
        clock[0] += 10
    assert found == [7, 8, 9, 10, 11, 12, 13]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == ["hearing: 3 of 7, 40 s left", "hearing: 6 of 7, 10 s left"]


def test_work_of_unknown_length_is_counted(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in progress(iter("abc"), "writing"):
        clock[0] += 10
    assert capsys.readouterr().err == "writing: 3\n"


def test_short_work_says_nothing(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress(range(50), "hearing")) == list(range(50))
    assert capsys.readouterr().err == ""


def test_a_note_is_told_too(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    count = Progress("corpus", "utterances", 100)
    clock[0] = 40
    count.advance(20, "0.50 h")
    count.close()
    assert capsys.readouterr().err == "corpus: 20 of 100, 0.50 h, 160 s left\n"


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
        clock[0] += 10
        tell(word)
    assert capsys.readouterr().err.split() == ["c", "f"]
