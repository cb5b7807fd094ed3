"""The script that makes prompts: what it writes, and what it says of files that it cannot use."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("wordfreq", reason="needs the train extra")

SCRIPT = Path(__file__).parents[2] / "recipes" / "text_mtp" / "make_prompts.py"


def make(questions: Path, prose: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(questions), str(prose), str(out)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_prompts_are_made(tmp_path: Path) -> None:
    questions, prose, out = (tmp_path / name for name in ("q.jsonl", "prose.txt", "out.jsonl"))
    questions.write_text("".join(json.dumps({"question": f"What is {i} and one?"}) + "\n" for i in range(950)))
    prose.write_text("".join(f"Sentence number {i} speaks of something.\n" for i in range(400)))
    assert make(questions, prose, out).returncode == 0
    prompts = [json.loads(line)["prompt"] for line in out.read_text().splitlines()]
    assert len(prompts) == len(set(prompts)) > 2500
    assert sum("and one?" in prompt for prompt in prompts) == 900
    first = out.read_bytes()
    assert make(questions, prose, out).returncode == 0
    assert out.read_bytes() == first
    questions.write_text('{"answer": "two"}\n')
    failed = make(questions, prose, out)
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr
    assert out.read_bytes() == first
