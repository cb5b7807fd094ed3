"""``bench service``: its clients hear what a server says, and how late."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from speech_mtp.serving.load import Answer, Load, mixed, recording, rows
from tests.cli.running import run
from tests.serving.chatting import chatting
from tests.serving.hearing import FakeRecogniser
from tests.serving.hearing import recording as recorded
from tests.serving.running import Running, until
from tests.serving.talking import Loudness


def test_every_kind_of_client_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("speech_mtp.serving.routes.realtime.silero", Loudness)
    out, plot, question = tmp_path / "load.json", tmp_path / "load.png", tmp_path / "question.wav"
    question.write_bytes(recorded(0.8))
    with chatting(recogniser=FakeRecogniser("Hello there!")) as server:
        arguments = ["bench", "service", "--url", server.url, "--streams", "4", "--seconds", "1", "--json", str(out)]
        mix = ["--mix", "speech,chat,realtime,spoken", "--question", str(question)]
        assert run(monkeypatch, *arguments, *mix, "--plot", str(plot)) == 0
    found = {row["kind"]: row for row in json.loads(out.read_text())["rows"]}
    assert set(found) == {"speech", "chat", "realtime", "spoken"}
    for row in found.values():
        assert row["errors"] == 0
        assert row["sound_s"] > 0
        assert row["first_audio_ms_p95"] >= row["first_audio_ms_p50"] > 0
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "first_audio_ms_p50" in capsys.readouterr().out


def test_clients_that_leave_are_no_errors_and_cost_the_server_nothing(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speech_mtp.serving.load.LEAVE_S", 0.05)  # an answer takes longer on any machine
    load = Load(server.url, leave=1.0)
    asyncio.run(load.run(["speech"] * 4, 2.0))
    assert sum(answer.left for answer in load.answers) > 2
    assert all(answer.error is None for answer in load.answers)
    assert sum(row["left"] for row in rows(4, 2.0, load.answers)) == sum(answer.left for answer in load.answers)
    until(lambda: not server.service.speaking)


def test_a_question_that_is_no_recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = tmp_path / "question.wav"
    wrong.write_bytes(b"RIFF, or not")
    with pytest.raises(ValueError, match="no sound"):
        recording(wrong)
    out = str(tmp_path / "load.json")
    assert run(monkeypatch, "bench", "service", "--mix", "spoken", "--json", out) == 2


def test_a_refusal_is_an_error(server: Running) -> None:
    load = Load(server.url)
    asyncio.run(load.run(["chat"], 0.1))
    (answer,) = load.answers
    assert answer.error == "RuntimeError: status 400"  # no language model
    (row,) = [row for row in rows(1, 0.1, load.answers) if row["answers"]]
    assert (row["errors"], row["first_audio_ms_p50"]) == (1, None)


def test_gaps_are_what_a_player_would_hear(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    clock = SimpleNamespace(monotonic=lambda: now)  # of this module alone: the loops of running servers need theirs
    monkeypatch.setattr("speech_mtp.serving.load.time", clock)
    answer = Answer("speech", 99.5)
    for at, num_bytes in ((100.0, 4800), (100.1, 4800), (100.27, 4800), (100.5, 4800)):
        now = at
        answer.hear(num_bytes)
    # 80 ms of cushion and 100 ms of sound each: all is played at 100.38, so the last came late.
    assert (answer.first_s, answer.playback.gaps) == (0.5, 1)
    assert answer.playback.heard_s == pytest.approx(0.4)


def test_an_unknown_kind_of_client() -> None:
    assert mixed(["speech", "chat"], 3) == ["speech", "chat", "speech"]
    with pytest.raises(ValueError, match="realtime"):
        mixed(["realtim"], 1)


def test_an_answer_without_sound_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(*_: object) -> AsyncIterator[int]:
        for nothing in (0, 0):
            yield nothing

    monkeypatch.setattr(Load, "_speech", silent)
    load = Load("http://127.0.0.1:1")
    asyncio.run(load.run(["speech"], 0.0))
    (answer,) = load.answers
    assert answer.error == "RuntimeError: an answer without sound"
