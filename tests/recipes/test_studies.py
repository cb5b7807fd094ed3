"""The scripts of studies: every call is one that the command line takes, and what it reads was made before."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.recipes.calls import RECIPES, check_calls, clone, told

TALKER = ["lm", "speech_mtp", "package", "drafts", "speech"]


def test_codecs_are_trained_measured_and_spoken(tmp_path: Path) -> None:
    calls = told(clone(tmp_path), "tokenizer_study/run.sh", "coupled", "mimi", GROUPS_OF="5 1", MORE_SENTENCES="")
    kinds = check_calls(tmp_path, calls, {"runs/spoken", "runs/store"})
    coupled = ["coupled_codec", "codec", "encode", "units", *TALKER, *TALKER]
    assert kinds == [*coupled, "features", "waveform_codec", "codec", "encode", *TALKER, *TALKER, "tokenizers"]
    talkers = [call for call in calls if call[1].endswith("/talker.yaml")]
    assert "run.model.frames_per_group=1" in talkers[1]
    again = told(tmp_path, "tokenizer_study/run.sh", "coupled", "mimi", GROUPS_OF="5 1", MORE_SENTENCES="")
    assert [call[:2] for call in again] == [["eval", "tokenizers"]]
    assert not any("recipes/corpus/dev_patterns.txt" in call for call in calls)


def test_objectives_of_speech_are_those_of_one_codec(tmp_path: Path) -> None:
    clone(tmp_path)
    source = tmp_path / "runs/tokenizer_study/decoupled2"
    (source / "codes").mkdir(parents=True)
    (source / "codec.json").write_text("{}")
    there = {f"runs/tokenizer_study/{name}" for name in ("units", "decoupled2/codes", "decoupled2/codec/export")}
    calls = told(tmp_path, "objectives/speech.sh")
    kinds = check_calls(tmp_path, calls, there)
    assert kinds == [*TALKER * 6, "tokenizers"]
    objectives = [
        [word for word in call if word.startswith("run.objective=")] for call in calls if "talker.yaml" in call[1]
    ]
    assert [bool(words) for words in objectives] == [False, False, True, True, True, True]
    assert (tmp_path / "runs/objectives/speech/decoupled2/known_pairs/codec.json").is_file()


def test_what_cannot_work_is_refused_before_any_work(tmp_path: Path) -> None:
    folder = clone(tmp_path)
    for script, words, said in (
        (
            "objectives/speech.sh",
            ["next_group", "frames_foward"],
            "no objective of speech frames_foward; see settings_of",
        ),
        ("objectives/speech.sh", [], "runs/tokenizer_study/decoupled2 is no codec of a study"),
        ("tokenizer_study/talker.sh", ["runs/x"], "talker.sh needs RUN CODES UNITS"),
    ):
        command = ["bash", str(folder / "recipes" / script), *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (1, "")
        assert said in done.stderr
    assert not (folder / "runs").exists()


def test_objectives_of_text_are_trained_completed_and_probed(tmp_path: Path) -> None:
    calls = told(clone(tmp_path), "objectives/study.sh", SEEDS="0", COMPILE="true")
    kinds = check_calls(tmp_path, calls, set())
    assert kinds[:6] == ["documents", "trunk", "text", "completion", "trunk", "completion"]
    assert kinds.count("text") == 15
    assert kinds[-1] == "objectives"
    others = ("probe", "documents", "continuations")
    trunks = [call for call in calls if call[0] == "train" and Path(call[1]).stem not in others]
    assert any("teacher.yaml" in call[1] for call in trunks)
    assert all("run.task.compile=true" in call for call in trunks)
    with pytest.raises(subprocess.CalledProcessError):
        told(tmp_path, "objectives/study.sh", SEEDS="1")  # not compiled


def test_smollm2_is_gone_on_with_and_measured_before(tmp_path: Path) -> None:
    calls = told(clone(tmp_path), "objectives/smollm2.sh")
    kinds = check_calls(tmp_path, calls, {"packaged"})
    measured = ["text", "trunk", "completion"]
    assert kinds == ["documents", *measured, *["trunk", *measured] * 3]
    assert [call[2] for call in calls if call[1] == "completion"][:2] == [
        "packaged",
        "runs/objectives/smollm2/smollm2/0/export",
    ]


@pytest.mark.parametrize("script", sorted(RECIPES.rglob("*.sh")), ids=lambda path: path.relative_to(RECIPES).as_posix())
def test_scripts_can_be_run(script: Path) -> None:
    assert script.stat().st_mode & 0o100
    subprocess.run(["bash", "-n", str(script)], check=True)
