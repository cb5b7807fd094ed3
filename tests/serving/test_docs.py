"""docs/serving.md tells the truth: its snippets run against a server, its options exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import soundfile

from speech_mtp.cli.serve import serve
from speech_mtp.serving.settings import Settings
from tests.serving.chatting import chatting
from tests.serving.hearing import FakeRecogniser, recording
from tests.serving.running import Running

DOCS = (Path(__file__).parents[2] / "docs/serving.md").read_text("utf-8")
BASH = re.findall(r"```bash\n(.*?)```", DOCS, flags=re.DOTALL)
PYTHON = re.findall(r"```python\n(.*?)```", DOCS, flags=re.DOTALL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = Settings(voices_dir=tmp_path_factory.mktemp("voices"))
    with chatting(settings, recogniser=FakeRecogniser("Hello there.")) as running:
        yield running


@pytest.fixture(autouse=True)
def _recordings(tmp_path: Path) -> None:
    """What the snippets send."""
    for name in ("ann.wav", "agreed.wav", "ben.flac"):
        (tmp_path / name).write_bytes(recording(2.0, name[-4:].strip(".")))


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_commands_run(server: Running, tmp_path: Path) -> None:
    for block in (block for block in BASH if "curl" in block):
        command = block.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
        subprocess.run(["bash", "-ec", command], cwd=tmp_path, check=True, timeout=60)
    assert soundfile.info(tmp_path / "hello.wav").samplerate == 24000
    assert (tmp_path / "hello.pcm").stat().st_size > 1000
    assert "speech.audio.done" in (tmp_path / "hello.sse").read_text()
    assert json.loads((tmp_path / "batch.json").read_text())["succeeded"] == 2
    assert json.loads((tmp_path / "chat.json").read_text())["choices"][0]["message"]["content"]
    assert json.loads((tmp_path / "voices.json").read_text())["voices"]
    assert json.loads((tmp_path / "heard.json").read_text())["text"] == "Hello there."
    assert "transcript.text.done" in (tmp_path / "heard.sse").read_text()
    assert json.loads((tmp_path / "voice.json").read_text())["name"] == "ann"
    assert (tmp_path / "by-ann.wav").read_bytes()[:4] == b"RIFF"
    assert json.loads((tmp_path / "deleted.json").read_text())["deleted"]
    assert json.loads((tmp_path / "secret.json").read_text())["value"].startswith("ek_")


@pytest.mark.parametrize("block", PYTHON)
def test_the_programs_run(
    server: Running, tmp_path: Path, block: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(block.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}"), {})
    assert capsys.readouterr().out or (tmp_path / "hello.mp3").stat().st_size > 100


def test_the_options_exist() -> None:
    named = set(re.findall(r"--([a-z-]+)", "".join(re.findall(r"`[^`]*`", DOCS)) + "".join(BASH)))
    options = {name.replace("_", "-") for name in serve.__annotations__}
    assert {"api-key-file", "max-queue", "public-lists"} <= named
    assert named - {"data"} <= options
