"""``export``: every format from the command line, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from speech_mtp import hub, plugins
from speech_mtp.cli.export import FORMATS
from speech_mtp.exports.base import HeadExport, open_trunk
from speech_mtp.exports.ntp import NTP
from tests.cli.running import besides_progress, refused, run
from tests.exports.tiny import assert_same, trained, trunk_folder

FITTING: dict[str, dict[str, Any]] = {
    "ntp": {"name": "leap"},
    "medusa": {"name": "medusa"},
    "vllm-medusa": {"name": "medusa"},
    "vllm-eagle3": {"name": "eagle3"},
    "speculators": {"name": "eagle3"},
    "deepseek": {"name": "deepseek"},
    "custom-generate": {"name": "hydra"},
}


def test_the_help_names_all_formats() -> None:
    formats = FORMATS.split(", ")
    assert sorted(name.replace("-", "_") for name in formats) == plugins.names("exports")
    assert formats == list(FITTING)
    assert [plugins.build("exports", name).name for name in formats] == formats


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A trunk, and a head of every kind that a format holds."""
    trunk_folder(tmp_path / "lm")
    lm = open_trunk(tmp_path / "lm")
    for spec in FITTING.values():
        hub.save_head(trained(lm, **spec), tmp_path / spec["name"], spec, lm.fingerprint)
    return tmp_path


@pytest.mark.parametrize("name", FITTING)
def test_every_format_is_written_and_stderr_is_for_progress(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    capsys.readouterr()
    head = str(folder / FITTING[name]["name"])
    out = folder / "out"
    assert run(monkeypatch, "export", name, "--head", head, "--out", str(out), "--backbone", str(folder / "lm")) == 0
    assert besides_progress(capsys.readouterr().err) == ""
    lm, exporter = open_trunk(folder / "lm"), plugins.build("exports", name)
    if isinstance(exporter, HeadExport):
        assert_same(hub.load_head(head, lm), exporter.read(out, lm))
    else:
        assert NTP().read(out).fingerprint == lm.fingerprint


def test_the_backbone_beside_the_head_is_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "lm").rename(folder / "backbone")
    assert run(monkeypatch, "export", "ntp", "--head", str(folder / "medusa"), "--out", str(folder / "out")) == 0
    assert NTP().read(folder / "out").fingerprint == open_trunk(folder / "backbone").fingerprint


@pytest.mark.parametrize(
    ("name", "head", "out", "sentence"),
    [
        ("vlm-medusa", "medusa", "out", "There is no 'vlm-medusa' in exports; did you mean 'vllm_medusa'?"),
        ("vllm-medusa", "nothing", "out", "There is no head"),
        ("vllm-medusa", "leap", "out", "The format vllm-medusa cannot hold this Leap head"),
        ("vllm-medusa", "medusa", "lm", "exists and is not empty"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_one_sentence(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    head: str,
    out: str,
    sentence: str,
) -> None:
    before = sorted(folder.rglob("*"))
    more = ["--out", str(folder / out), "--backbone", str(folder / "lm")]
    assert sentence in refused(monkeypatch, capsys, "export", name, "--head", str(folder / head), *more)
    assert sorted(folder.rglob("*")) == before
