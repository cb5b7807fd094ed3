"""Scripts of recipes, with a program in place of ``speech-mtp`` that notes its words and leaves files behind."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import typer

from speech_mtp import config as settings
from speech_mtp.cli import app
from speech_mtp.training.inputs import inputs
from speech_mtp.training.stages import TrainConfig

RECIPES = Path(__file__).parents[2] / "recipes"
STUB = """#!/usr/bin/env bash
for word in "$@"; do printf '%s\\t' "$word"; done >> "$NOTES"
echo >> "$NOTES"
for word in "$@"; do
    case "$word" in run.out=*)
        out="${word#run.out=}"
        mkdir -p "$out/export"
        touch "$out/made.json" "$out/index.json" "$out/codes.safetensors" ;;
    esac
    [ "$last" != --json ] || { mkdir -p "$(dirname "$word")"; touch "$word"; }
    last="$word"
done
"""


READ = ("sentences", "model", "heads", "head", "codec", "corpus_dir", "folder")
"""What measures read."""


def _each(value: object) -> list[object]:
    """The several that a value may name."""
    return [*value] if isinstance(value, list | tuple) else [*str(value).split(",")]


def clone(folder: Path) -> Path:
    """A folder with the recipes, and the program in its ``bin``."""
    shutil.copytree(RECIPES, folder / "recipes")
    (folder / "bin").mkdir()
    (folder / "bin/speech-mtp").write_text(STUB)
    (folder / "bin/speech-mtp").chmod(0o755)
    return folder


def told(folder: Path, script: str, *words: str, **more: str) -> list[list[str]]:
    """The arguments of every call of ``recipes/<script>``, in order."""
    notes = folder / "notes"
    notes.write_text("")
    given = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "NOTES": str(notes), **more}
    subprocess.run(["bash", str(folder / "recipes" / script), *words], check=True, env=given, timeout=60)
    return [line.split("\t")[:-1] for line in notes.read_text().splitlines()]


def check_calls(folder: Path, calls: list[list[str]], there: set[str]) -> list[str]:
    """The kind of stage or the name of the measure of each call, all of which the command line takes; what they read is
    ``there``, in ``folder``, or was made before."""
    made = {Path(name) for name in there}
    kinds = []

    def check(paths: list[Path], words: list[str]) -> None:
        missing = [path for path in paths if not (path in made or (folder / path).exists())]
        assert missing == [], words

    for first, *words in calls:
        if first == "train":
            stage = settings.load(folder / words[0], TrainConfig, words[1:]).run
            needed = [Path(name) for _, name in inputs(stage) if name != "tiny-en"]
            check(needed, words)
            heads = [stage.out / "export" / name for name in getattr(stage, "heads", ["head"])]
            made |= {stage.out, stage.out / "export", *heads}
            kinds.append(stage.kind)
        else:
            assert first == "eval", words
            group = typer.main.get_command(app).commands["eval"]  # type: ignore[attr-defined]
            given = group.commands[words[0]].make_context(words[0], words[1:]).params
            read = (given.get(name) for name in READ)
            check([Path(str(path)) for value in read if value is not None for path in _each(value)], words)
            kinds.append(words[0])
    return kinds
