"""recipes/tiny_en/run.sh, the whole way to a model, with a program in place of ``speech-mtp`` that notes its words."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from speech_mtp import config as settings
from speech_mtp.training.inputs import inputs
from speech_mtp.training.stages import TrainConfig

RECIPES = Path(__file__).parents[2] / "recipes"
READERS = ("units.yaml", "config.yaml", "heads.yaml", "package.yaml")
"""Recipes that are told of all codes."""
STUB = """#!/usr/bin/env bash
echo "$*" >> "$NOTES"
for word in "$@"; do
    case "$word" in run.out=*) out="${word#run.out=}"; mkdir -p "$out"; touch "$out/made.json" ;; esac
done
"""


def told(clone: Path, **more: str) -> list[list[str]]:
    """The arguments of every call, in order."""
    notes = clone / "notes"
    notes.write_text("")
    path = f"{clone / 'bin'}:{os.environ['PATH']}"
    given = {"PATH": path, "NOTES": str(notes), "PARTS": "0 1", "EACH": "10", **more}
    subprocess.run(["bash", str(clone / "recipes/tiny_en/run.sh")], check=True, env=given)
    return [line.split() for line in notes.read_text().splitlines()]


def test_the_whole_way_is_gone_in_order(tmp_path: Path) -> None:
    """Every call is one that ``train`` takes, and what it reads is there or was made before."""
    shutil.copytree(RECIPES, tmp_path / "recipes")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/speech-mtp").write_text(STUB)
    (tmp_path / "bin/speech-mtp").chmod(0o755)
    calls = [call for call in told(tmp_path) if call[0] == "train"]
    made: set[Path] = set()
    kinds: list[str] = []
    for _, recipe, *changes in calls:
        stage = settings.load(tmp_path / recipe, TrainConfig, changes).run
        needed = [Path(name) for _, name in inputs(stage) if name != "tiny-en"]
        assert [path for path in needed if not ((tmp_path / path).exists() or path in made)] == [], recipe
        made |= {
            stage.out,
            stage.out / "export",
            *(stage.out / "export" / name for name in getattr(stage, "heads", ())),
        }
        kinds.append(stage.kind)
    assert kinds[-5:] == ["encode", "units", "lm", "speech_mtp", "package"]
    codes = [f"runs/hours/{name}" for name in ("codes00", "codes01", "codes_spoken", "codes_spoken_kokoro")]
    readers = [call for call in calls if call[1].removeprefix("recipes/tiny_en/") in READERS]
    assert len(readers) == len(READERS)
    assert all(f"run.codes=[{','.join(codes)}]" in call for call in readers)
    again = [call[1] for call in told(tmp_path) if call[0] == "train"]
    assert [call[1] for call in calls if call[1] not in again] == ["recipes/tiny_en/speak.yaml"] * 2


def test_a_recipe_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    script = RECIPES / "tiny_en/run.sh"
    done = subprocess.run(["bash", str(script), "cuda"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no recipe cuda" in done.stderr
