"""``voices``, ``convert`` and ``say --voice-from`` with a saved tiny codec and its voices."""

from __future__ import annotations

from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from speech_mtp import audio, hub
from tests.cli.running import refused, run
from tests.tiny import tiny_model
from tests.voices.test_reference import voice

MODEL = tiny_model()


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SPEECH_MTP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "load_voices", lambda name: (MODEL.codec, MODEL.voices))
    monkeypatch.setattr(hub, "voices_heard", lambda name: 2)
    monkeypatch.setattr(hub, "load", lambda *given, **more: MODEL)
    soundfile.write(tmp_path / "stereo.flac", torch.stack([voice(3.0, rate=44_100)] * 2, 1).numpy(), 44_100)


def test_a_voice_is_made_listed_used_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recording, out = str(tmp_path / "stereo.flac"), tmp_path / "out.wav"
    assert run(monkeypatch, "voices", "add", "ann", recording) == 0
    assert "few voices (low, high)" in capsys.readouterr().out
    (kept,) = (tmp_path / "cache" / "voices" / "voices").iterdir()
    assert set(load_file(kept)) == {"value"}, "the recording is not kept unless that is asked for"
    monkeypatch.setattr(hub, "voices_heard", lambda name: 9)
    assert run(monkeypatch, "voices", "add", "bob", recording, "--keep-reference") == 0
    assert "few voices" not in capsys.readouterr().out
    assert run(monkeypatch, "voices", "list") == 0
    listed = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()[-4:]]
    assert (listed[:2], set(listed[2:])) == (["low", "high"], {"ann", "bob"})
    spoken = {}
    for name, speaker in (("made", ["--voice", "ann"]), ("given", ["--voice-from", recording]), ("own", [])):
        assert run(monkeypatch, "say", "Hello there.", "-o", str(out), "--seed", "1", *speaker) == 0
        spoken[name] = audio.read(out)[0]
    assert torch.equal(spoken["made"], spoken["given"])
    assert len(spoken["own"]) != len(spoken["made"]) or not torch.equal(spoken["own"], spoken["made"])
    assert run(monkeypatch, "voices", "remove", "ann") == 0
    assert "voices add" in refused_after(monkeypatch, capsys, "say", "Hello.", "-o", str(out), "--voice", "ann")


def refused_after(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    return refused(monkeypatch, capsys, *arguments)


def test_a_recording_is_said_in_another_voice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = str(tmp_path / "stereo.flac"), tmp_path / "out.wav"
    assert run(monkeypatch, "convert", source, "--voice", "high", "-o", str(out)) == 0
    high, rate = audio.read(out)
    assert (rate, len(high)) == (24_000, pytest.approx(3 * 24_000, abs=2))
    assert run(monkeypatch, "convert", source, "--voice-from", source, "-o", str(out)) == 0
    assert not torch.equal(audio.read(out)[0], high)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["convert", "IN"], "Say in which voice"),
        (["convert", "IN", "--voice", "low", "--voice-from", "IN"], "Say in which voice"),
        (["convert", "IN", "--voice", "lou"], "did you mean 'low'"),
        (["convert", "missing.wav", "--voice", "low"], "speech-mtp: There is no audio file missing.wav."),
        (["convert", "TEXT", "--voice", "low"], "cannot be read as audio"),
        (["convert", "IN", "--voice-from", "SHORT"], "SHORT makes no voice. The recording holds less than 1 second"),
        (["convert", "IN", "--voice", "low", "-o", "out.mp3"], "must end in .wav"),
        (["say", "Hello.", "--voice", "low", "--voice-from", "IN"], "are two voices"),
        (["say", "Hello.", "--voice-from", "TEXT"], "cannot be read as audio"),
        (["voices", "add", "low", "IN"], "cannot be called 'low'"),
        (["voices", "add", " ", "IN"], "cannot be called"),
        (["voices", "add", "alloy", "IN"], "cannot be called 'alloy'"),
        (["voices", "add", "ann", "SHORT"], "SHORT makes no voice"),
        (["voices", "remove", "nobody"], "no voice 'nobody'"),
    ],
)
def test_what_is_refused(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"IN": tmp_path / "stereo.flac", "SHORT": tmp_path / "short.wav", "TEXT": tmp_path / "text.wav"}
    audio.write(files["SHORT"], voice(0.5), 24_000)
    files["TEXT"].write_text("no sound")
    given = [str(files.get(argument, argument)) for argument in arguments]
    wanted = sentence.replace("SHORT", str(files["SHORT"]))
    assert wanted in refused(monkeypatch, capsys, *given)
    assert not (tmp_path / "converted.wav").exists()
    assert not (tmp_path / "cache").exists()
