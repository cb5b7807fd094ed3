"""recipes/tiny_en/hours.sh with a program in place of ``speech-mtp`` that notes what it is told."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "recipes/tiny_en/hours.sh"
STUB = """#!/usr/bin/env bash
for word in "$@"; do case "$word" in run.out=*) out="${word#run.out=}" ;; esac; done
echo "$2 $(basename "$out") $*" | grep -oE "^\\S+ \\S+|run.first=[0-9]+" | paste -sd " " >> "$NOTES"
mkdir -p "$out"
[ "$(basename "$out")" = "${KILLED_IN:-}" ] && exit 137
case "$2" in *encode.yaml) touch "$out/codes.safetensors" "$out/made.json" ;; esac
"""


def run(folder: Path, **settings: str) -> tuple[int, list[str], str]:
    """Exit status, what the program was told to make, and what was said."""
    stub, notes = folder / "bin/speech-mtp", folder / "notes"
    stub.parent.mkdir(exist_ok=True)
    stub.write_text(STUB)
    stub.chmod(0o755)
    notes.write_text("")
    given = {"OUT": folder / "hours", "SENTENCES": folder / "sentences.txt", "NOTES": notes, "EACH": "10"}
    path = {"PATH": f"{stub.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", str(SCRIPT)], capture_output=True, text=True, check=False, env={**path, **given, **settings}
    )
    return done.returncode, [line.split("/")[-1] for line in notes.read_text().splitlines()], done.stderr


def test_parts_are_spoken_encoded_and_let_go(tmp_path: Path) -> None:
    (tmp_path / "sentences.txt").write_text("One.\nTwo.\n")
    made = ["speak.yaml spoken08 run.first=80", "encode.yaml codes08", "speak.yaml spoken09 run.first=90"]
    status, told, _ = run(tmp_path, PARTS="08 9", KILLED_IN="codes09")
    assert (status, told) == (137, [*made, "encode.yaml codes09"])
    assert sorted(path.name for path in (tmp_path / "hours").glob("[cs]*")) == ["codes08", "codes09", "spoken09"]
    (tmp_path / "hours/spoken08").mkdir()  # a kill came before it was removed
    assert run(tmp_path, PARTS="8 9")[:2] == (0, ["speak.yaml spoken09 run.first=90", "encode.yaml codes09"])
    assert sorted(path.name for path in (tmp_path / "hours").glob("[cs]*")) == ["codes08", "codes09"]
    assert run(tmp_path, PARTS="8 9")[:2] == (0, [])


def test_other_sentences_or_sizes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "sentences.txt").write_text("One.\nTwo.\n")
    assert run(tmp_path, PARTS="0")[0] == 0
    for settings in ({"EACH": "20"}, {"CODEC": "tiny-en"}, {}):
        if not settings:
            (tmp_path / "sentences.txt").write_text("One.\nTwo.\nThree.\n")
        status, told, said = run(tmp_path, PARTS="1", **settings)
        assert (status, told) == (1, [])
        assert "made of other sentences, with another codec, or in parts of another size" in said
