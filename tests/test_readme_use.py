"""Every ``speech-mtp`` command of the README works, in its order, in the layout of a fresh clone, at toy size."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("wordfreq", reason="needs the train extra")

from speech_mtp import hub
from speech_mtp.cli import evaluate
from speech_mtp.evaluation import speech_report
from speech_mtp.hub import backbones, heads
from speech_mtp.lm.backbone import fingerprint_of
from speech_mtp.lm.text_lm import TextLM
from tests.cli.running import run
from tests.test_readme import BLOCKS, ROOT
from tests.text_tiny import tiny_folder, tiny_head
from tests.tiny import tiny_model

COMMANDS = [line.strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
INSTALLS = ("python3 -m venv", ".venv/bin/pip", "source .venv")
"""What the test environment has done already."""
HEAD = "run.heads.medusa.head"
TOY = {
    "recipes/tiny_en/speak.yaml": [
        *("run.utterances=8", "run.characters=[1, 80]", "run.dev=0.3", "run.workers=1"),
        "run.voices=[{teacher: tests.corpus.sine_teacher:Sine, share: 1}]",
    ],
    "recipes/tiny_en/units.yaml": ["run.hidden_layer=2"],
    "recipes/tiny_en/config.yaml": [
        *(f"run.model.{size}" for size in ("dim=32", "num_layers=2", "heads=2", "hidden=48", "unit_dim=16")),
        *("run.task.batch=2", "run.loop.steps=2"),
    ],
    "recipes/corpus/own.yaml": ["g2p=tests.lm.tiny:Letters", "workers=1", "pitch=false"],
    "recipes/text_mtp/answers.yaml": ["run.invent.prompts=2", "run.answer.max_new_tokens=9", "run.dtype=fp32"],
    "recipes/text_mtp/ablations/medusa.yaml": [
        f"{HEAD}.draft_vocab=50",
        "run.loop.steps=2",
        "run.task.data.dev_every=4",
    ],
    "recipes/objectives/documents.yaml": [
        *("run.sources.stdlib.name=files", "run.sources.stdlib.paths=[recipes/*/*.yaml]", "run.dev_fraction=0.4"),
    ],
    "recipes/objectives/trunk.yaml": [
        *("run.model.dim=32", "run.model.num_layers=1", "run.task.dev_rows=4", "run.loop.steps=2"),
    ],
}
"""Overrides for size, by recipe."""


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: the recipes, with small data. Whatever model is asked for is a tiny one of random weights."""
    shutil.copytree(ROOT / "recipes", tmp_path / "clone/recipes")
    prompts = tmp_path / "clone/recipes/text_mtp/prompts.jsonl"
    prompts.write_text("".join(prompts.read_text("utf-8").splitlines(keepends=True)[:12]), "utf-8")
    speech, backbone = tiny_model(), tiny_folder(tmp_path / "backbone")
    head = {"name": "eagle3", "depth": 2, "private": False, "draft_vocab": 50}
    tiny_head(TextLM.from_folder(backbone), tmp_path / "heads" / hub.DEFAULT_HEAD, **head)
    monkeypatch.setattr(heads, "HEADS", tmp_path / "heads")
    for module in (hub, backbones):
        monkeypatch.setattr(module, "resolve_backbone", lambda *_: backbone)
    monkeypatch.setattr(hub, "load", lambda name, **settings: speech, raising=False)
    monkeypatch.setattr(hub, "load_codec", lambda name: speech.codec)
    monkeypatch.setattr(hub, "load_voices", lambda name: (speech.codec, speech.voices))
    monkeypatch.setenv("SPEECH_MTP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("speech_mtp.voices.reference.LEAST_S", 0.1)  # its speech is short
    monkeypatch.setattr(evaluate, "_recording_of", lambda model, voice: None)
    monkeypatch.setattr(speech_report, "speech_report", lambda say, texts, *rest: {"wer": float(say(texts[0]).seconds)})
    monkeypatch.chdir(tmp_path / "clone")
    return tmp_path / "clone"


def carry_out(monkeypatch: pytest.MonkeyPatch, line: str) -> int:
    """The exit code of a line of the README; of one that installs, the program that follows."""
    if "speech-mtp " not in line:
        return 0 if line.startswith(INSTALLS) else subprocess.run(["bash", "-c", line], check=False).returncode
    arguments = shlex.split(line[line.index("speech-mtp ") :], comments=True)[1:]
    recipe = next((name for name in arguments if name.endswith(".yaml")), "")
    writes = arguments[0] == "generate" or arguments[:2] == ["bench", "text"]
    more = ["--max-new-tokens", "8"] if writes else []
    if recipe.startswith("recipes/text_mtp"):
        more.append(f"run.backbone.sha256={fingerprint_of(Path('../backbone'))}")  # heads know their trunk by it
    return run(monkeypatch, *arguments, *TOY.get(recipe, []), *more)


def test_every_command_of_the_readme_works(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = [line for line in COMMANDS if "speech-mtp " in line]
    assert {line.split("speech-mtp ")[1].split()[0] for line in programs} >= {
        *("say", "tokenize", "voices", "convert", "generate", "train", "eval", "bench", "export")
    }
    for line in COMMANDS:
        if "pytest" not in line:
            assert carry_out(monkeypatch, line) == 0, line
    made = (
        "hello.wav",
        "voice.wav",
        "me.wav",
        "converted.wav",
        "out/001.wav",
        "voice.safetensors",
        "scores.json",
        "bench.json",
        "streams.json",
        "runs/own/report.json",
        "text.json",
    )
    folders = ("eagle3", "medusa", "runs/talker/export", "runs/objectives/trunk/export")
    assert [name for name in (*made, *folders) if not (clone / name).exists()] == []


def test_what_it_names_is_in_the_repository() -> None:
    named = {word for line in COMMANDS for word in shlex.split(line, comments=True) if word.startswith("recipes/")}
    assert len(named) >= 4
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("speech-mtp say @story.txt", "no text file story.txt"),
        (
            "speech-mtp train recipes/tiny_en/config.yaml run.loop.steps=100",
            "run speech-mtp train recipes/tiny_en/encode",
        ),
        ("speech-mtp train recipes/tiny_en/confg.yaml", "no settings file"),
        ("speech-mtp export custom-generate --head runs/text_mtp/all/export/medusa --out medusa", "There is no head"),
        ("speech-mtp say Hello --loud", "No such option"),
    ],
)
def test_a_command_that_does_not_work_is_found_out(
    clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, words: str
) -> None:
    assert carry_out(monkeypatch, line) == 2
    assert words in capsys.readouterr().err
