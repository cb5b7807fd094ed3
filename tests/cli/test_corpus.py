"""``speech-mtp corpus`` with recordings: what it writes, and what is wrong in a recipe in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("wordfreq", reason="needs the train extra")

from speech_mtp.corpus import importing
from tests.cli.running import refused, run
from tests.corpus import own_recordings as own

TEXTS = ["The cat is near the dog.", "The bus is near the lamp."]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(own.__file__).parent))
    monkeypatch.setattr(importing, "in_processes", lambda function, jobs, workers: (function(*job) for job in jobs))
    return own.recipe(tmp_path / "out", own.tones(tmp_path / "in", TEXTS), own.aligner(tmp_path / "codec"))


def written(recipe: dict[str, Any]) -> str:
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe), "utf-8")
    return "recipe.yaml"


def test_recordings_are_imported_with_a_report_and_its_picture(
    recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra 'eval'")
    assert run(monkeypatch, "corpus", written(recipe)) == 0
    assert json.loads(capsys.readouterr().out)["utterances"] == 2
    assert Path("out/report.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "NOTICE", "audio", "manifest.jsonl", "recordings.jsonl", "rejects.jsonl", "report.json", "report.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"licence": None}, "licence"),
        ({"licence": ""}, "licence"),
        ({"name": "a b"}, "name"),
        ({"source": {"name": "ljspeech", "folder": "gone"}}, "There is no folder gone"),
        ({"source": {"name": "ljspeech", "folder": "in"}}, "There is no list of recordings in/metadata.csv"),
        ({"source": {"name": "csv_table", "file": "in/table.csv", "text": "wordz"}}, "has no column 'wordz'"),
        ({"source": {"name": "csv_tables"}}, "did you mean 'csv_table'"),
        ({"source": {"name": "csv_table", "folder": "in"}}, "has no setting 'folder'"),
    ],
)
def test_a_wrong_recipe_is_one_sentence(
    recipe: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    words: str,
) -> None:
    plan = {key: value for key, value in (recipe["recordings"][0] | change).items() if value is not None}
    assert words in refused(monkeypatch, capsys, "corpus", written(recipe | {"recordings": [plan]}))
    assert not Path("out").exists()
