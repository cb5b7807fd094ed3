"""A study of codecs becomes tables: bits a second by hand, differences paired by sentence, what is missing left out."""

from __future__ import annotations

import json
import shutil
from math import log
from pathlib import Path
from typing import Any

import pytest

from speech_mtp.evaluation.tokenizer_study import study, study_table
from tests.evaluation import studies


def estimate(value: float) -> dict[str, Any]:
    return {"value": value, "interval": [value - 0.01, value + 0.01], "chance": 0.1}


def write_codec(folder: Path, streams: dict[str, float]) -> None:
    """``streams`` and the bits a second that each costs."""
    folder.mkdir(parents=True)
    report = {
        "bits_per_second": 440.0,
        "frame_rate_hz": 25.0,
        "streams": {name: [{"bits_per_second": 220.0}] for name in streams},
        "round_trip": {"wer": 0.03, "wer_original": 0.01, "dnsmos": 2.9},
        "views": {
            "pitch x 0.72": {name: [estimate(0.9)] for name in streams},
            "both": {name: [estimate(0.5)] for name in streams},
        },
        "probes": {"entropy": {name: {"given phonemes": {"bits_per_second": bits}} for name, bits in streams.items()}},
    }
    (folder / "codec.json").write_text(json.dumps(report))


def write_talker(run: Path, errors: list[int], streams: int, heads: bool = True) -> None:
    (run / "talker").mkdir(parents=True)
    terms = {f"dev/stream{k}": 2.0 for k in range(streams)}
    lines = [{"step": 5, "dev/control": 9.0, **{f"dev/stream{k}": 9.0 for k in range(streams)}}]
    lines += [{"step": 9, "dev/control": 0.5, **terms}, {"step": 10, "loss": 1.0}]
    (run / "talker/log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [{"text": f"sentence {i % 2}", "errors": e, "words": 10} for i, e in enumerate(errors)]
    figures = {"success_rate": 0.5, "dnsmos": 2.8, "similarity": None}
    voices = {"low": {**figures, "rows": rows[:2]}, "high": {**figures, "success_rate": 1.0, "rows": rows[2:]}}
    (run / "speech.json").write_text(json.dumps({**figures, "voice": "low", "voices": voices}))
    if heads:
        depths = {str(d): {"right": [0.9, 0.6, 0.3, 0.1][: streams + 2], "channels_in_a_row": 1.9 / d} for d in (1, 2)}
        (run / "drafts.json").write_text(
            json.dumps({"heads": {f"{run}/heads/export/medusa": {"agreement": {"0.0": depths}}}})
        )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tmp_path /= "study"
    write_codec(tmp_path / "coupled", {"book0": 150.0, "book1": 90.0})
    write_codec(tmp_path / "decoupled", {"content": 60.0, "prosody": 80.0})
    write_codec(tmp_path / "mimi", {"semantic": 60.0, "acoustic": 80.0})
    for seed, (base, other) in enumerate([([2, 0, 4], [1, 0, 2]), ([3, 1, 1], [3, 0, 0])]):
        write_talker(tmp_path / "coupled/g5" / str(seed), base, 2, heads=False)
        write_talker(tmp_path / "decoupled/g5" / str(seed), other, 2)
    write_talker(tmp_path / "decoupled/g1/0", [1, 1, 1], 2)
    return tmp_path


def test_what_the_rows_hold(folder: Path) -> None:
    rows = {row["name"]: row for row in study(folder)["rows"]}
    assert list(rows) == ["coupled", "decoupled", "mimi"]
    assert rows["coupled"]["codec"]["entropy"] == 240
    assert rows["decoupled"]["codec"]["round_trip_wer"] == pytest.approx(0.02)
    assert rows["decoupled"]["codec"]["equal"]["value"] == 0.5
    assert rows["mimi"]["groups"] == {}
    talker = rows["decoupled"]["groups"]["g5"]
    assert talker["seeds"] == ["0", "1"]
    assert talker["talker"] == pytest.approx((2.0 * 2 + 0.5 / 5) * 25 / log(2))
    assert rows["decoupled"]["groups"]["g1"]["talker"] == pytest.approx((2.0 * 2 + 0.5) * 25 / log(2))
    assert talker["wer"]["value"] == pytest.approx(6 / 60)
    assert talker["against"]["value"] == pytest.approx((6 - 11) / 60)
    low, high = talker["against"]["interval"]
    assert low < talker["against"]["value"] < high <= 0
    assert "against" not in rows["coupled"]["groups"]["g5"]
    assert "against" not in rows["decoupled"]["groups"]["g1"]  # the base was not tried at one frame
    assert talker["success"] == 0.75
    assert "similarity" not in talker
    assert talker["drafts"]["medusa"] == {"first_code": 0.6, "first_frame": 0.3, "in_a_row": [1.9, 0.95]}
    assert rows["coupled"]["groups"]["g5"]["drafts"] == {}


def test_one_stream_of_two_books_has_frames_of_two_codes(folder: Path) -> None:
    report = json.loads((folder / "decoupled/codec.json").read_text())
    report["streams"] = {"codebooks": [{}, {}]}
    (folder / "decoupled/codec.json").write_text(json.dumps(report))
    row = next(row for row in study(folder)["rows"] if row["name"] == "decoupled")
    assert row["groups"]["g5"]["drafts"]["medusa"]["first_frame"] == 0.3


def test_what_another_version_left_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="no codec 'cuopled' to compare with"):
        study(folder, "cuopled")
    (folder / "decoupled/graphs/old").mkdir(parents=True)
    study(folder)
    speech = json.loads((folder / "coupled/g5/0/speech.json").read_text())
    del speech["voices"]["low"]["rows"][0]["errors"]
    (folder / "coupled/g5/0/speech.json").write_text(json.dumps(speech))
    with pytest.raises(ValueError, match=r"0/speech\.json does not say 'errors'; make it again"):
        study(folder)
    (folder / "mimi/codec.json").write_text("{}")
    with pytest.raises(ValueError, match=r"mimi/codec\.json does not say frame_rate_hz"):
        study(folder)


def test_different_judges_are_not_set_side_by_side(folder: Path) -> None:
    for name, judge in (("coupled", "a"), ("decoupled", "b")):
        path = folder / name / "g5/0/speech.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "recogniser": judge}))
    with pytest.raises(ValueError, match="heard by a and b"):
        study(folder)


def test_round_trips_of_other_recordings_are_not_set_side_by_side(folder: Path) -> None:
    for name, counts in (("coupled", {"utterances": 100}), ("decoupled", {"utterances": 100, "opinions": 40})):
        path = folder / name / "codec.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **counts}))
    shutil.rmtree(folder / "mimi")
    with pytest.raises(ValueError, match=r"coupled was measured on 100 .*opinions of 100, and decoupled on .* of 40"):
        study(folder)
    same = {"utterances": 100, "opinions": 40, "seconds": 99.0, "voices": ["a", "b"]}
    for other in ({"seconds": 120.0}, {"voices": ["a", "c"]}, {}):
        for name, counts in (("coupled", same), ("decoupled", same | other)):
            path = folder / name / "codec.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **counts}))
        if other:
            with pytest.raises(ValueError, match="measure both on the same recordings"):
                study(folder)
    study(folder)


def test_seeds_of_one_sentence_are_drawn_together(folder: Path) -> None:
    """The same errors over again make an interval no smaller."""
    before = study(folder)["rows"][0]["groups"]["g5"]["wer"]
    for seed in (0, 1):
        shutil.copytree(folder / f"coupled/g5/{seed}", folder / f"coupled/g5/{seed + 2}")
    after = study(folder)["rows"][0]["groups"]["g5"]["wer"]
    assert after["interval"] == pytest.approx(before["interval"])
    assert after["interval"][1] > after["interval"][0]


def test_another_base(folder: Path) -> None:
    rows = study(folder, "decoupled")["rows"]
    assert [row["name"] for row in rows] == ["decoupled", "coupled", "mimi"]
    assert rows[1]["groups"]["g5"]["against"]["value"] == pytest.approx((11 - 6) / 60)
    assert "against" not in rows[0]["groups"]["g5"]


def test_the_command_writes_tables_and_a_picture(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = studies.told(monkeypatch, capsys, "tokenizers", folder, study_table)
    lines = [line for line in said if line[:1] == ["decoupled"]]
    assert lines[0][1:4] == ["440", "+2.00%", "2.90"]
    assert lines[2][:4] == ["decoupled", "5", "2", "147.9"]
    assert "holds no codec of a study" in studies.refused_nothing(monkeypatch, capsys, "tokenizers", tmp_path / "none")
