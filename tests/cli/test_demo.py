"""``demo`` is ``serve --demo`` with the packaged language model, and names the extra that is missing."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import pytest

from speech_mtp import plugins
from speech_mtp.cli.serve import serve
from tests.cli.running import refused, run

demo = importlib.import_module("speech_mtp.cli.demo")


@pytest.mark.parametrize(
    ("options", "llm"),
    [
        ((), {"llm": "packaged", "llm_url": None}),
        (("--llm", "folder"), {"llm": "folder", "llm_url": None}),
        (("--llm-url", "http://127.0.0.1:1/v1", "--llm-model", "x"), {"llm": None, "llm_model": "x"}),
    ],
)
def test_it_serves_the_page_with_a_language_model(
    monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], llm: dict[str, Any]
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setattr(demo, "serve", lambda **settings: asked.update(settings))
    assert run(monkeypatch, "demo", "--port", "0", *options) == 0
    assert asked["demo"] is True
    assert asked["port"] == 0
    assert llm.items() <= asked.items()
    assert asked.keys() <= serve.__annotations__.keys()


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def load(name: str) -> ModuleType:
        if name == "speech_mtp_demo":
            raise ModuleNotFoundError(name="gradio")
        return importlib.import_module(name)

    monkeypatch.setattr(plugins, "importlib", type("Loader", (), {"import_module": staticmethod(load)}))
    said = refused(monkeypatch, capsys, "demo")
    assert "'gradio' is not installed" in said
    assert "pip install 'speech-mtp[demo]'" in said
