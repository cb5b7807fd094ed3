"""The versions that were tested together.

``python -m tests.pins`` writes them, ``python -m tests.pins FOLDER`` lays out the project without them.

The whole set, for every extra and every supported Python, stands in ``constraints.txt`` (for pip) and in
``[tool.uv] constraint-dependencies`` of ``pyproject.toml`` (for uv). No lock file is kept, and no host is named.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"constraint-dependencies = \[\n(?:    \".*\",\n)*\]\n")
HEADER = "# The versions that were tested together, renewed by `make pins`: pip install -c constraints.txt ...\n"


def without_pins(text: str) -> str:
    """``pyproject.toml`` with an empty set of constraints."""
    emptied, count = BLOCK.subn("constraint-dependencies = [\n]\n", text)
    assert count == 1, "pyproject.toml has no constraint-dependencies"
    return emptied


def with_pins(text: str, pins: list[str]) -> str:
    lines = "".join(f'    "{pin}",\n' for pin in pins)
    return without_pins(text).replace("constraint-dependencies = [\n", f"constraint-dependencies = [\n{lines}")


def newest(uv: str) -> list[str]:
    """The newest versions that fit together, as requirements with markers."""
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "pyproject.toml"
        project.write_text(without_pins((ROOT / "pyproject.toml").read_text("utf-8")), "utf-8")
        plain = ("--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "--quiet")
        command = [uv, "pip", "compile", str(project), "--universal", "--all-extras", "--upgrade", *plain]
        found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder).stdout
    lines = [line.strip().replace('"', "'") for line in found.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def write(pins: list[str]) -> None:
    project = ROOT / "pyproject.toml"
    project.write_text(with_pins(project.read_text("utf-8"), pins), "utf-8")
    (ROOT / "constraints.txt").write_text(HEADER + "\n".join(pins) + "\n", "utf-8")


def lay_out(folder: Path) -> None:
    """The project in ``folder``, its files linked, without pins."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in (
        "speech_mtp",
        "tests",
        "recipes",
        "demo",
        "docs",
        ".ci",
        "README.md",
        "LICENSE",
        "Makefile",
        "constraints.txt",
    ):
        if (ROOT / name).exists():
            (folder / name).symlink_to(ROOT / name)
    text = without_pins((ROOT / "pyproject.toml").read_text("utf-8"))
    (folder / "pyproject.toml").write_text(text, "utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        lay_out(Path(sys.argv[1]))
    else:
        write(newest(str(ROOT / ".uv/bin/uv") if (ROOT / ".uv/bin/uv").is_file() else "uv"))
