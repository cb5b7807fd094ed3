"""``deploy/`` tells the truth: its steps are those of README.md, its commands parse, its times fit the server's."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer

from speech_mtp.cli import app
from speech_mtp.serving.server import LAST_BYTES_S
from speech_mtp.serving.settings import Settings

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
DOCKERFILE = (ROOT / "deploy/Dockerfile").read_text("utf-8")
UNIT = (ROOT / "deploy/speech-mtp.service").read_text("utf-8")
SAY = re.findall(r"```bash\n(.*?)\n```", README, flags=re.DOTALL)[0]


def setting(name: str) -> str:
    (found,) = re.findall(rf"^{name}=(.*)$", UNIT, flags=re.MULTILINE)
    return str(found)


def instruction(name: str) -> str:
    (found,) = re.findall(rf"^{name} (.*)$", DOCKERFILE, flags=re.MULTILINE)
    return str(found)


def parsed(arguments: list[str]) -> dict[str, object]:
    """What ``speech-mtp`` understands by ``arguments``, of which the first is the command. Nothing is run."""
    name, *options = arguments
    group = typer.main.get_command(app)
    command = group.commands[name]  # type: ignore[attr-defined]
    return dict(command.make_context(name, options).params)


@pytest.mark.parametrize("text", [DOCKERFILE, UNIT], ids=["Dockerfile", "unit"])
def test_it_is_installed_as_the_readme_says(text: str) -> None:
    text = text.replace("${EXTRAS}", re.findall(r'^ARG EXTRAS="(.*)"$', DOCKERFILE, flags=re.MULTILINE)[0])
    (extras,) = re.findall(r"uv run ((?:--extra \w+ )+)speech-mtp say", text)
    assert SAY.replace("--extra offline ", extras) in text
    known = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert {"offline", "serve", "asr"} <= set(re.findall(r"--extra (\w+)", extras)) <= known.keys()


def test_the_units_command_parses() -> None:
    program, *arguments = shlex.split(setting("ExecStart"))
    assert program == f"{setting('WorkingDirectory')}/.venv/bin/speech-mtp"
    found = parsed(arguments)
    assert (found["host"], found["port"]) == ("127.0.0.1", 8000)
    credential = setting("LoadCredential").partition(":")[0]
    assert found["api_key_file"] == Path("${CREDENTIALS_DIRECTORY}") / credential
    assert found["voices_dir"] == Path("${STATE_DIRECTORY}/voices")
    assert setting("StateDirectory")


def test_the_images_command_parses() -> None:
    assert json.loads(instruction("ENTRYPOINT")) == [".venv/bin/speech-mtp"]
    found = parsed(json.loads(instruction("CMD")))
    assert str(found["port"]) == instruction("EXPOSE")
    assert found["host"] == "0.0.0.0"
    assert found["api_key_file"] is not None
    assert str(found["voices_dir"]).startswith(instruction("VOLUME"))
    assert f"http://127.0.0.1:{found['port']}/health'" in instruction("HEALTHCHECK --start-period=60s CMD")


def test_an_unknown_option_would_be_found() -> None:
    with pytest.raises(Exception, match="no-such"):
        parsed(["serve", "--no-such", "x"])


def test_streams_may_end_before_the_server_is_killed() -> None:
    assert int(setting("TimeoutStopSec")) > Settings().drain_s + LAST_BYTES_S
