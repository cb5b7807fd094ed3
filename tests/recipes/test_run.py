"""recipes/tiny_en/run.sh, the whole way to a model, with a program in place of ``speech-mtp`` that notes its words."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

RECIPES = Path(__file__).parents[2] / "recipes"
READERS = ("units.yaml", "config.yaml", "heads.yaml", "package.yaml")
"""Recipes that are told of all codes."""
STUB = """#!/usr/bin/env bash
echo "$*" >> "$NOTES"
for word in "$@"; do
    case "$word" in run.out=*) out="${word#run.out=}"; mkdir -p "$out"; touch "$out/made.json" ;; esac
done
"""


def told(clone: Path) -> list[list[str]]:
    """The arguments of every call, in order."""
    notes = clone / "notes"
    notes.write_text("")
    path = f"{clone / 'bin'}:{os.environ['PATH']}"
    given = {**os.environ, "PATH": path, "NOTES": str(notes), "PARTS": "0 1", "EACH": "10"}
    subprocess.run(["bash", str(clone / "recipes/tiny_en/run.sh")], check=True, env=given)
    return [line.split() for line in notes.read_text().splitlines()]


def test_the_whole_way_is_gone_in_order_and_what_is_encoded_stays(tmp_path: Path) -> None:
    shutil.copytree(RECIPES, tmp_path / "recipes")
    (tmp_path / "runs/sentences").mkdir(parents=True)
    (tmp_path / "runs/sentences/sentences.txt").write_text("One.\nTwo.\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/speech-mtp").write_text(STUB)
    (tmp_path / "bin/speech-mtp").chmod(0o755)
    calls = told(tmp_path)
    recipes = [call[1] for call in calls if call[0] == "train"]
    assert [name for name in recipes if not (tmp_path / name).is_file()] == []
    steps = [name.removeprefix("recipes/").removesuffix(".yaml") for name in recipes]
    order = ["corpus/many", "tokenizer/speak", "tokenizer/codec2_voices", "tiny_en/speak", "tiny_en/encode"]
    order += ["tiny_en/units", "tiny_en/config", "tiny_en/heads", "tiny_en/package"]
    assert sorted(order, key=steps.index) == order
    codes = [folder.name for folder in sorted((tmp_path / "runs/hours").glob("codes*"))]
    assert codes == ["codes00", "codes01", "codes_spoken", "codes_spoken_kokoro"]
    every = f"run.codes=[{','.join(f'runs/hours/{name}' for name in codes)}]"
    readers = [call for call in calls if call[1].removeprefix("recipes/tiny_en/") in READERS]
    assert len(readers) == len(READERS)
    assert all(every in call for call in readers)
    again = [call[1] for call in told(tmp_path) if call[0] == "train"]
    assert "recipes/tiny_en/encode.yaml" not in again
    assert again == [
        name for name in recipes if name not in ("recipes/tiny_en/encode.yaml", "recipes/tiny_en/speak.yaml")
    ]
