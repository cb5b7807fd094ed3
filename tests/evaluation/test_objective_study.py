"""A study's folders become a table: means, paired differences with Student's interval, what is missing left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from speech_mtp.evaluation.objective_study import interval, study, study_table
from tests.evaluation import studies


def estimate(value: float) -> dict[str, Any]:
    return {"value": value, "interval": [value, value]}


def write(folder: Path, loss: float, cpu_s: float, drafts: float | None = None) -> None:
    folder.mkdir(parents=True)
    written = {name: estimate(0.5) for name in ("valid_lines", "next_line", "whole")} | {"tokens_per_forward": 1.0}
    (folder / "text.json").write_text(json.dumps({"loss": estimate(loss), "bits_per_byte": estimate(1.4 * loss)}))
    (folder / "completion.json").write_text(json.dumps(written))
    if drafts is not None:
        (folder / "drafts.json").write_text(json.dumps({"tokens_per_forward": drafts}))
    lines = [
        {"step": 0, "cpu_s": 1.0, "loss": 5.0},
        {"step": 9, "cpu_s": cpu_s, "loss": 2.0},
        {"step": 9, "dev/loss": loss},
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, (base, other) in enumerate([(2.0, 1.9), (2.2, 2.0), (2.1, 2.1)]):
        write(tmp_path / "study/trunk" / str(seed), base, 100)
        write(tmp_path / "study/registers" / str(seed), other, 200, drafts=1.5)
        write(tmp_path / "study/trunk_more" / str(seed), 1.8, 50)
        write(tmp_path / "study/concept" / str(seed), 1.7, 60)
    (tmp_path / "study/documents").mkdir()
    return tmp_path / "study"


def test_rows_are_means_and_differences_of_the_same_seed(folder: Path) -> None:
    rows = {row["name"]: row for row in study(folder)["rows"]}
    assert list(rows) == ["trunk", "concept", "registers", "trunk_more"]
    assert rows["trunk"]["base"] is None
    assert "against" not in rows["trunk"]["figures"]["loss"]
    assert rows["trunk"]["figures"]["loss"]["mean"] == pytest.approx(2.1)
    found = rows["registers"]["figures"]["loss"]["against"]
    assert found["value"] == pytest.approx(-0.1)
    half = 4.303 * 0.1 / 3**0.5
    assert found["interval"] == pytest.approx([-0.1 - half, -0.1 + half])
    assert rows["registers"]["figures"]["drafts"]["mean"] == 1.5
    assert "drafts" not in rows["trunk"]["figures"]
    assert rows["trunk"]["figures"]["next_line"]["values"] == {"0": 0.5, "1": 0.5, "2": 0.5}
    assert rows["registers"]["figures"]["cpu_s"]["mean"] == 200
    assert rows["concept"]["base"] == "trunk_more"
    assert rows["concept"]["figures"]["loss"]["against"]["value"] == pytest.approx(-0.1)
    assert interval([0.3]) == {"value": 0.3, "interval": None}


def test_a_seed_that_the_base_has_not_is_no_pair(folder: Path) -> None:
    write(folder / "registers/7", 9.0, 1)
    row = next(row for row in study(folder)["rows"] if row["name"] == "registers")
    assert row["figures"]["loss"]["mean"] == pytest.approx((1.9 + 2.0 + 2.1 + 9) / 4)
    assert row["figures"]["loss"]["against"]["value"] == pytest.approx(-0.1)


def test_the_command_writes_table_and_picture(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = studies.told(monkeypatch, capsys, "objectives", folder, study_table)
    line = next(line for line in said if line[:1] == ["registers"])
    assert line[1:4] == ["3", "2.0000", "-0.1000"]
    refusal = studies.refused_nothing(monkeypatch, capsys, "objectives", folder / "documents")
    assert "holds no run of a study" in refusal
