"""recipes/tiny_en/run.sh, the whole way to a model, with a program in place of ``speech-mtp`` that notes its words."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.recipes.calls import RECIPES, check_calls, clone, told

READERS = ("units.yaml", "config.yaml", "heads.yaml", "package.yaml")
"""Recipes that are told of all codes."""


def test_the_whole_way_is_gone_in_order(tmp_path: Path) -> None:
    """Every call is one that ``train`` takes, and what it reads is there or was made before."""
    clone(tmp_path)
    parts = {"PARTS": "0 1", "EACH": "10"}
    calls = [call for call in told(tmp_path, "tiny_en/run.sh", **parts) if call[0] == "train"]
    assert check_calls(tmp_path, calls, set())[-5:] == ["encode", "units", "lm", "speech_mtp", "package"]
    codes = [f"runs/hours/{name}" for name in ("codes00", "codes01", "codes_spoken", "codes_spoken_kokoro")]
    readers = [call for call in calls if call[1].removeprefix("recipes/tiny_en/") in READERS]
    assert len(readers) == len(READERS)
    assert all(f"run.codes=[{','.join(codes)}]" in call for call in readers)
    again = [call[1] for call in told(tmp_path, "tiny_en/run.sh", **parts) if call[0] == "train"]
    assert [call[1] for call in calls if call[1] not in again] == ["recipes/tiny_en/speak.yaml"] * 2


def test_a_recipe_that_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    script = RECIPES / "tiny_en/run.sh"
    done = subprocess.run(["bash", str(script), "cuda"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no recipe cuda" in done.stderr
