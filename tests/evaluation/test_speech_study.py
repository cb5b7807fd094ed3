"""Reports of speech side by side: rates over all runs, differences paired by sentence, nothing unlike compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from speech_mtp.evaluation.speech_study import compare, comparison_table

WORDS = [10, 20, 30]


def write(path: Path, errors: list[int], *, voice: str = "heart", judge: str = "whisper", **more: Any) -> Path:
    rows = [{"text": f"sentence {i}", "errors": e, "words": WORDS[i]} for i, e in enumerate(errors)]
    if others := more.pop("others", None):
        for row, e in zip(rows, others, strict=True):
            row["others"] = {"sphinx": {"errors": e, "words": row["words"]}}
        more["others"] = {"sphinx": {}}
    path.write_text(json.dumps({"recogniser": judge, "voices": {voice: {"rows": rows, **more}}}))
    return path


def test_runs_are_pooled_and_differences_are_of_a_mean_run(tmp_path: Path) -> None:
    ours = [
        write(
            tmp_path / "a",
            [1, 2, 3],
            dnsmos=3.0,
            similarity=0.5,
            similarity_to="others",
            others=[3, 3, 3],
            files={"easy": {"wer": 0.1}},
        ),
        write(
            tmp_path / "b",
            [3, 2, 1],
            voice="drew",
            dnsmos=2.0,
            similarity=0.7,
            similarity_to="others",
            others=[0, 0, 3],
            files={"easy": {"wer": 0.3}},
        ),
    ]
    theirs = [write(tmp_path / "c", [0, 0, 3], dnsmos=None, rtf=0.5, similarity=0.9, similarity_to="reference")]
    report = compare({"ours": ours, "theirs": theirs})
    first, second = report["rows"]
    assert (report["recogniser"], report["sentences"]) == ("whisper", 3)
    assert first["reports"] == [str(path) for path in ours]
    assert (first["voices"], first["runs"]) == (["heart", "drew"], 2)
    assert first["wer"]["value"] == pytest.approx(12 / 120)
    assert "against" not in first
    assert first["dnsmos"] == 2.5
    assert first["of"] == {"easy": pytest.approx(0.2)}
    assert first["by"]["sphinx"]["value"] == pytest.approx(12 / 120)
    assert second["against"]["value"] == pytest.approx((3 - 6) / 60)  # not (3 - 12) / 60
    low, high = second["against"]["interval"]
    assert low < -0.05 < high
    assert second["by"] == {}
    assert (second["dnsmos"], second["rtf"], second["similarity"]) == (None, 0.5, 0.9)
    lines = comparison_table(report).splitlines()
    assert lines[1].split()[:5] == ["ours", "heart", "drew", "2", "10.00%"]
    assert "10.00% [" in lines[1].split("  -  ")[1]
    assert lines[2].split("  ")[0] == "theirs"
    assert "WER by sphinx" in lines[0]
    assert "WER of easy" in lines[0]
    assert "0.600" not in lines[1]  # similarities to different things are not set side by side
    alone = compare({"ours": ours})
    assert "0.600" in comparison_table(alone).splitlines()[1]


def test_sides_that_are_the_same_differ_by_nothing(tmp_path: Path) -> None:
    one = write(tmp_path / "a", [1, 2, 0])
    assert compare({"a": [one], "b": [one, one]})["rows"][1]["against"] == {"value": 0.0, "interval": [0.0, 0.0]}


def test_what_is_unlike_is_not_set_side_by_side(tmp_path: Path) -> None:
    one, other = write(tmp_path / "a", [1, 2, 0]), write(tmp_path / "b", [1, 2])
    with pytest.raises(ValueError, match="of other sentences"):
        compare({"one": [one], "other": [other]})
    with pytest.raises(ValueError, match="of other sentences"):
        compare({"one": [one, other]})
    with pytest.raises(ValueError, match="were heard by sphinx and whisper"):
        compare({"one": [one], "other": [write(tmp_path / "c", [1, 2, 0], judge="sphinx")]})
    report = json.loads(one.read_text())
    report["voices"]["heart"]["rows"][0]["dnsmos"] = 3.0
    (tmp_path / "d").write_text(json.dumps(report))
    with pytest.raises(ValueError, match="opinions of 1 and 0 sentences"):
        compare({"one": [one], "other": [tmp_path / "d"]})


@pytest.mark.parametrize(
    ("report", "said"),
    [
        ({}, "is no report"),
        ([], "is no report"),
        ({"recogniser": "r", "voices": {}}, "holds no voice"),
        ({"recogniser": "r", "voices": {"v": {"rows": []}}}, "holds no voice"),
        ({"recogniser": "r", "voices": {"v": {"rows": [{"text": "a"}]}}}, "holds no voice"),
        ({"recogniser": "r", "voices": {"v": {}}}, "is no report"),
        ({"recogniser": "r", "voices": {"v": 3}}, "is no report"),
        ({"voices": {"v": {"rows": [{"text": "a", "errors": 0, "words": 1}]}}}, "is no report"),
    ],
)
def test_what_is_no_report_is_named(tmp_path: Path, report: object, said: str) -> None:
    good, bad = write(tmp_path / "good", [1, 2, 0]), tmp_path / "bad"
    bad.write_text(json.dumps(report))
    for contenders in ({"one": [bad]}, {"one": [good], "other": [bad]}):
        with pytest.raises(ValueError, match=f"bad {said}"):
            compare(contenders)
