"""The README tells the truth: its commands are those that CI runs, its files exist."""

from __future__ import annotations

import itertools
import re
import tomllib
from pathlib import Path

import pytest

from tests.pins import lay_out, with_pins

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)


def test_ci_and_make_run_the_test_command_of_the_readme() -> None:
    command = BLOCKS[1].strip()
    assert command.endswith("pytest")
    assert command in (ROOT / ".ci/run").read_text("utf-8").splitlines()
    extras = " ".join(re.findall(r"--extra \w+", command))
    assert f"uv run {extras} pytest" in command
    assert f"RUN := $(UV) run {extras}\n" in (ROOT / "Makefile").read_text("utf-8")


def test_both_commands_bootstrap_the_same_way_and_name_real_extras() -> None:
    say, test = (block.strip() for block in BLOCKS[:2])
    assert "\n" not in say + test
    bootstrap = "python3 -m venv .uv && .uv/bin/pip install -q uv && .uv/bin/uv run "
    assert say.startswith(bootstrap)
    assert test.startswith(bootstrap)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert set(re.findall(r"--extra (\w+)", say + test)) <= extras.keys()


def test_plain_pip_installs_what_the_offline_extra_holds() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert all(requirement in BLOCKS[2] for requirement in extras["offline"])


def test_the_files_that_it_names_exist() -> None:
    named = set(re.findall(r"`((?:speech_mtp|recipes)/[\w/]+\.(?:py|md|yaml))`", README))
    assert len(named) >= 5
    planned = {"speech_mtp/heads/medusa.py"}  # the example of a plug-in
    assert sorted(name for name in named - planned if not (ROOT / name).is_file()) == []


def test_every_make_target_is_explained() -> None:
    targets = re.findall(r"^([\w-]+): ", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE)
    assert sorted(targets) == sorted(re.findall(r"`make ([\w-]+)`", README))


def test_the_same_versions_are_pinned_for_uv_and_for_pip() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    pins = settings["tool"]["uv"].get("constraint-dependencies", [])
    if not pins:
        pytest.skip("laid out without pins, to try the newest versions")
    written = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    assert pins == [line for line in written if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[^ ]+( ; .+)?", pin) for pin in pins), "exact, and no hosts"
    extras = settings["project"]["optional-dependencies"].values()
    needed = [*settings["project"]["dependencies"], *itertools.chain.from_iterable(extras)]
    named = {re.split(r"[<>=\[ ]", requirement)[0].lower() for requirement in needed}
    assert named <= {pin.split("==")[0] for pin in pins}


def test_the_project_can_be_laid_out_without_pins(tmp_path: Path) -> None:
    lay_out(tmp_path / "newest")
    settings = tomllib.loads((tmp_path / "newest/pyproject.toml").read_text("utf-8"))
    assert settings["tool"]["uv"]["constraint-dependencies"] == []
    assert settings["project"]["dependencies"]
    assert (tmp_path / "newest/tests/test_readme.py").is_file()
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    assert with_pins(with_pins(text, ["a==1"]), ["b==2 ; python_version < '4'"]).count("==2 ; python") == 1
