"""``serve`` refuses what it cannot do before it loads anything, in one sentence."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

from speech_mtp import plugins
from speech_mtp.cli import app
from speech_mtp.cli.serve import load_recogniser
from tests.cli.running import refused


def test_other_machines_need_a_key(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("SPEECH_MTP_API_KEY", raising=False)
    assert "--api-key-file or --without-key" in refused(monkeypatch, capsys, "serve", "--host", "0.0.0.0")


def test_keys_are_checked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "no key file" in refused(monkeypatch, capsys, "serve", "--api-key-file", str(tmp_path / "none"))
    monkeypatch.setenv("SPEECH_MTP_API_KEY", "short")
    said = refused(monkeypatch, capsys, "serve")
    assert "SPEECH_MTP_API_KEY cannot be used" in said
    assert "short" not in said


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--llm", "packaged", "--llm-url", "http://127.0.0.1:1/v1", "--llm-model", "x"), "either --llm or --llm-url"),
        (("--llm-url", "http://127.0.0.1:1/v1"), "belong together"),
        (("--llm-model", "x"), "belong together"),
        (("--llm-head", "x"), "--llm-head is the head of --llm"),
        (("--llm-url", "ftp://x/v1", "--llm-model", "x"), "no address of HTTP"),
        (("--llm", "/nowhere/at-all"), "/nowhere/at-all"),
    ],
)
def test_what_answers_chats_is_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], sentence: str
) -> None:
    assert sentence in refused(monkeypatch, capsys, "serve", *options)


def test_what_clients_leave_lies_where_it_was_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: list[tuple[Any, Any]] = []

    class Server:
        def run(self) -> None:
            return

    def create_app(model: Any, settings: Any, make_writer: Any, **more: Any) -> None:
        made.append((settings, more["recogniser"]))

    monkeypatch.setenv("SPEECH_MTP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SPEECH_MTP_API_KEY", raising=False)
    monkeypatch.setitem(load_recogniser.__globals__, "load_model", lambda *_: None)
    monkeypatch.setattr("speech_mtp.serving.app.create_app", create_app)
    monkeypatch.setattr("speech_mtp.serving.server.make_server", lambda *_: Server())
    for options in ([], ["--voices-dir", str(tmp_path), "--without-consent", "--asr", "none"]):
        assert typer.main.get_command(app).main(["serve", *options], standalone_mode=False) is None
    (usual, recogniser), (own, none) = made
    assert (usual.voices_dir, usual.needs_consent) == (tmp_path / "cache/voices", True)
    assert recogniser is None or recogniser.name == "whisper-tiny.en"
    assert (own.voices_dir, own.needs_consent, none) == (tmp_path, False, None)


def test_aliases_are_checked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "write NAME=VOICE" in refused(monkeypatch, capsys, "serve", "--voice-alias", "alloy")


def test_an_unknown_model_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "tiny-eng" in refused(monkeypatch, capsys, "serve", "--model", "tiny-eng")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def load(name: str) -> ModuleType:
        if name == "uvicorn":
            raise ModuleNotFoundError(name=name)
        return importlib.import_module(name)

    monkeypatch.setattr(plugins, "importlib", type("Loader", (), {"import_module": staticmethod(load)}))
    assert "pip install 'speech-mtp[serve]'" in refused(monkeypatch, capsys, "serve")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--asr", "whisper"), "There is no 'whisper' in frontends"),
        (("--asr", "none", "--asr-model", "x"), "leave --asr none out"),
        (("--asr-model", "/nowhere/at-all"), "/nowhere/at-all"),
    ],
)
def test_what_recognises_speech_is_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], sentence: str
) -> None:
    assert sentence in refused(monkeypatch, capsys, "serve", *options)


def test_speech_is_recognised_by_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(family: str, spec: Any) -> Any:
        if spec["name"] == "absent":
            raise plugins.MissingExtra(
                "The package 'x' is not installed; install it with pip install 'speech-mtp[asr]'."
            )
        return spec

    monkeypatch.setattr(plugins, "build", build)
    assert load_recogniser(None, None) == {"name": "faster_whisper"}
    assert load_recogniser("faster_whisper", Path("x")) == {"name": "faster_whisper", "folder": "x"}
    assert load_recogniser("none", None) is None
    with pytest.raises(plugins.MissingExtra, match=r"speech-mtp\[asr\]"):
        load_recogniser("absent", None)
    monkeypatch.setitem(load_recogniser.__globals__, "USUAL_ASR", "absent")
    assert load_recogniser(None, None) is None
