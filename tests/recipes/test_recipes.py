"""Every recipe file can be read by the stage that it is for, and what it reads is there or made by another one."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip("wordfreq", reason="needs the train extra")
pytest.importorskip("faker", reason="needs the train extra")

from speech_mtp import config as settings
from speech_mtp import hub, plugins
from speech_mtp.corpus.build import CorpusConfig
from speech_mtp.corpus.documents.patterns import Patterns
from speech_mtp.corpus.selfwrite import read_prompts
from speech_mtp.heads.base import TrunkShape
from speech_mtp.lm.causal_lm import CausalLM, CausalLMConfig
from speech_mtp.lm.direct import DirectConfig
from speech_mtp.lm.speech_lm import SpeechLM, SpeechLMConfig
from speech_mtp.lm.text_encoder import TextEncoderConfig
from speech_mtp.objectives.base import Course, Objective
from speech_mtp.objectives.mtp import MTP
from speech_mtp.objectives.speech_mtp import SpeechMTP
from speech_mtp.text.phonemes import SYMBOLS
from speech_mtp.training.inputs import check_inputs, inputs
from speech_mtp.training.speech_mtp import build_head
from speech_mtp.training.stages import (
    CodecRun,
    DocumentsRun,
    LMRun,
    PackageRun,
    SentencesRun,
    SpeechMTPRun,
    Stage,
    TextEncoderRun,
    TextMTPRun,
    TrainConfig,
    TrunkRun,
    UnitsRun,
)

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
FILES = sorted(RECIPES.rglob("*.yaml"))
BASES = {RECIPES / "text_mtp/common.yaml"}
"""Files that only others begin with."""
PROMPTS, PATTERNS = RECIPES / "corpus/prompts.yaml", RECIPES / "corpus/patterns.yaml"
SENTENCES = RECIPES / "corpus/many.yaml"
CORPORA = {*(RECIPES / "corpus").glob("*.yaml")} - {PROMPTS, PATTERNS, SENTENCES}
SERVED = {RECIPES / "serve_ray/serve.yaml"}
"""Files of Ray Serve; ``test_serve_ray.py`` reads them."""
STAGES = [path for path in FILES if path not in BASES | CORPORA | SERVED | {PROMPTS, PATTERNS}]
CODES = {"codebook_sizes": [512, 200], "frame_rate_hz": 25.0, "timbre_dim": 64}
"""What codec 2 gives."""
PUBLISHED = {"facebook/encodec_24khz"}
"""Repositories of a hub that recipes name."""
TRUNK = TrunkShape(576, 49152, 30, 9, 3, 64, 1536)


def named(path: Path) -> str:
    return str(path.relative_to(RECIPES))


def stage_of(path: Path) -> Stage:
    return settings.load(path, TrainConfig).run


def check_speech_lm(stage: LMRun) -> None:
    given = {key: value for key, value in stage.model.items() if key != "name"}
    fixed = {**CODES, "codebook_sizes": tuple(CODES["codebook_sizes"])}
    if stage.model["name"] == "direct":
        DirectConfig(**fixed, **given)
        return
    assert stage.model["name"] == "talker"
    with torch.device("meta"):
        SpeechLM(SpeechLMConfig(**fixed, **given, num_phonemes=len(SYMBOLS), backbone_dim=TRUNK.dim))


def check_plugins(stage: Stage) -> None:
    """Raises ValueError or TypeError where a plug-in or one of its settings does not exist."""
    if isinstance(stage, LMRun):
        check_speech_lm(stage)
    if isinstance(stage, TextMTPRun):
        with torch.device("meta"):
            for entry in stage.heads.values():
                MTP(plugins.build("heads", entry.head, shape=TRUNK), entry.objective)
    if isinstance(stage, SpeechMTPRun):
        lm = hub.load_any_lm(stage.lm)
        for entry in stage.heads.values():
            SpeechMTP(build_head(entry.head, lm, 0), lm, entry.objective)
    if isinstance(stage, TrunkRun):
        objective: Objective = plugins.build("objectives", stage.objective)
        if not isinstance(stage.model, CausalLMConfig) or objective.teachers():
            return  # what they go on with or learn from is not made yet
        assert stage.task.length <= stage.model.max_positions
        with torch.device("meta"):
            objective.bind(CausalLM(stage.model, 257), Course(stage.task.length, stage.loop.steps))
    if isinstance(stage, DocumentsRun):
        for spec in stage.sources.values():
            plugins.build("corpus.documents", spec)
    if isinstance(stage, SentencesRun):
        for source in stage.texts.values():
            if isinstance(source.documents, dict):
                plugins.find("corpus.documents", source.documents["name"])
    if isinstance(stage, TextEncoderRun):
        TextEncoderConfig(**stage.model, backbone_dim=TRUNK.dim, hidden_layer=stage.hidden_layer)
    if isinstance(stage, UnitsRun | TextEncoderRun | PackageRun) and stage.g2p != "own":
        plugins.find("text.g2p", stage.g2p)


@pytest.mark.parametrize("path", STAGES, ids=named)
def test_a_stage_is_valid_and_its_plugins_exist(path: Path) -> None:
    check_plugins(stage_of(path))


def test_a_codec_that_is_gone_on_with_keeps_its_sizes() -> None:
    codecs = [stage for stage in map(stage_of, STAGES) if isinstance(stage, CodecRun)]
    by_export = {str(stage.out / "export"): stage for stage in codecs}
    found = [stage for stage in codecs if stage.start in by_export and not stage.start_partly]
    assert len(found) > 3
    for stage in found:
        assert stage.model == by_export[stage.start].model, stage.out


@pytest.mark.parametrize("path", sorted(CORPORA), ids=named)
def test_a_corpus_is_valid_and_its_plugins_exist(path: Path) -> None:
    corpus = settings.load(path, CorpusConfig)
    for plan in corpus.voices:
        name = plan.teacher if isinstance(plan.teacher, str) else plan.teacher["name"]
        plugins.find("corpus.teachers", name)
    for recording in corpus.recordings:
        plugins.find(
            "corpus.recordings", recording.source if isinstance(recording.source, str) else recording.source["name"]
        )
    for source in corpus.texts:
        assert source.path is not None
        assert (ROOT / source.path).is_file() or (corpus.write is not None and source.path == corpus.write.out)
    if corpus.write is not None:
        assert ROOT / corpus.write.prompts == PROMPTS


def test_the_prompts_and_patterns_are_valid() -> None:
    read_prompts(PROMPTS)
    Patterns(str(PATTERNS), 1)


def test_a_base_is_the_base_of_something() -> None:
    bases = {(path.parent / base).resolve() for path in FILES if (base := _yaml(path).get("base"))}
    assert bases >= {base.resolve() for base in BASES}
    assert all(path.is_file() for path in bases)


@pytest.mark.parametrize("path", STAGES, ids=named)
def test_what_a_stage_reads_is_there_or_made_by_another(path: Path) -> None:
    made = {stage_of(other).out for other in STAGES} | {settings.load(path, CorpusConfig).out for path in CORPORA}
    for key, name in inputs(stage_of(path)):
        there = (ROOT / name).exists() or name in {*hub.known_models(), *PUBLISHED}
        assert there or made & {Path(name), *Path(name).parents} or commanded(path, str(name)), (key, name)


def commanded(path: Path, name: str) -> bool:
    """Whether the recipe says with which script of its folder ``name`` is made."""
    words = [line[1:] for line in path.read_text("utf-8").splitlines() if line.startswith("#")]
    scripts = re.findall(r"recipes/\w+/\w+\.py", " ".join(words))
    return name in " ".join(words) and any((ROOT / script).is_file() for script in scripts)


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.sh")), ids=named)
def test_scripts_name_files_that_exist(path: Path) -> None:
    files = re.findall(r"(?:recipes|ablations)/[\w/]+\.\w+", path.read_text("utf-8"))
    assert files
    assert [name for name in files if not any((root / name).is_file() for root in (ROOT, path.parent))] == []


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"loop": {"stepz": 3}}, "no setting 'run.*stepz'; did you mean 'steps'"),
        ({"heads": {"medusa": {"head": {"name": "medusae"}}}}, "no 'medusae' in heads"),
        ({"heads": {"medusa": {"head": {"name": "medusa", "num_head": 2}}}}, "no setting 'num_head'"),
    ],
)
def test_a_wrong_recipe_is_found_out(tmp_path: Path, wrong: dict[str, Any], words: str) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump({"base": str(RECIPES / "text_mtp/ablations/medusa.yaml"), "run": wrong}), "utf-8")
    with pytest.raises(ValueError, match=words):
        check_plugins(stage_of(path))


@pytest.mark.parametrize("path", [path for path in STAGES if any(inputs(stage_of(path)))], ids=named)
def test_a_missing_input_is_one_sentence_that_says_what_to_run(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stage = stage_of(path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"^There is no [\w/.]+ \(run\.\w+\); [^.]+(\.yaml[^.]*)?\.$"):
        check_inputs(stage)


def _yaml(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text("utf-8"))
    return found
