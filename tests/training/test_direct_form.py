"""The direct form from the recipe to the voice: trained by its stage, packaged, loaded, spoken with; all of it tiny."""

from __future__ import annotations

import fnmatch
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from speech_mtp import audio, hub
from speech_mtp import config as settings
from speech_mtp.codecs.decoupled import Decoupled
from speech_mtp.corpus import build
from speech_mtp.corpus.codes import CodeCorpus, CodeRow, save_codes
from speech_mtp.decoding.engine import Guard
from speech_mtp.evaluation import speech_report
from speech_mtp.hub import backbones, finding, models
from speech_mtp.hub.settings import model_settings
from speech_mtp.lm.direct import DirectLM
from speech_mtp.streaming.timed import speak_timed
from speech_mtp.training.lm import LMTaskConfig
from speech_mtp.training.runs import run
from speech_mtp.training.stages import LMRun, TrainConfig
from speech_mtp.types import Sampling
from tests.cli import running
from tests.lm.tiny import tiny_tokenizer
from tests.tiny import tiny_lm, tiny_model

RECIPES = Path(__file__).parents[2] / "recipes" / "tiny_en"
TEXTS = ["hello there.", "the quick brown fox jumps.", "good morning", "it is a lazy dog."]
SPEECH = "Good morning, Dr. Fox! The quick brown dog jumps over 12 lazy dogs. It is good, it is late, and we like it."
CODEC = Decoupled.tiny()


@pytest.fixture
def stage(tmp_path: Path, backbone: dict[str, Any]) -> dict[str, Any]:
    """The stage ``lm`` on a toy code corpus: six utterances of random codes."""
    rng = torch.Generator().manual_seed(0)
    rows, frames = [], []
    for i in range(6):
        n, start = 8 + 3 * i, sum(f.shape[1] for f in frames)
        rows.append(CodeRow(f"{i}", "low", TEXTS[i % 4], "", "dev" if i == 5 else "train", start, n))
        frames.append(torch.stack([torch.randint(0, s, (n,), generator=rng) for s in CODEC.spec.codebook_sizes]))
    timbre = torch.randn(6, CODEC.spec.timbre_dim, generator=rng)
    unit = torch.zeros(sum(row.frames for row in rows)).long()
    save_codes(CodeCorpus(rows, torch.cat(frames, 1), unit, timbre), tmp_path / "codes")
    sizes = {"codebook_sizes": CODEC.spec.codebook_sizes, "frame_rate_hz": 25, "timbre_dim": CODEC.spec.timbre_dim}
    (tmp_path / "codes" / "codec.json").write_text(json.dumps(sizes))
    return {
        "kind": "lm",
        "out": tmp_path / "lm",
        "codes": [tmp_path / "codes"],
        "model": {"name": "direct", "frames_per_group": 2},
        "backbone": backbone,
        "task": {"batch": 2},
        "loop": {"steps": 3, "learning_rate": 1e-3, "warmup": 1, "log_every": 1, "save_every_s": 1e9},
        "device": "cpu",
    }


def trained(stage: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return run(TrainConfig.model_validate({"run": {**stage, **changes}}))


def package_stage(stage: dict[str, Any], folder: Path) -> dict[str, Any]:
    hub.save_codec(CODEC, folder / "codec", "fp32")
    (folder / "card.md").write_text("# A direct model")
    return {
        "kind": "package",
        "out": folder / "model",
        "codec": str(folder / "codec"),
        "lm": stage["out"] / "export",
        "codes": stage["codes"],
        "voices": {"first": "low"},
        "backbone": stage["backbone"],
        "sampling": {"seed": 3},
        "storage": "fp32",
        "card": folder / "card.md",
    }


@pytest.fixture
def packaged(stage: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder after three steps of training; from now on no backbone is found."""
    scores = trained(stage)
    assert scores.keys() == {"out", "text", "control", "stream0", "stream1"}
    assert trained(package_stage(stage, tmp_path))["voices"] == ["first"]

    def nowhere(*_: object) -> Path:
        raise AssertionError("the direct form looks for no backbone")

    for module in (hub, backbones, models):
        monkeypatch.setattr(module, "resolve_backbone", nowhere)
    return tmp_path / "model"


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


# -- training ---------------------------------------------------------------------------------------------------------
def test_a_training_in_bits_is_the_training_in_one_go(stage: dict[str, Any], tmp_path: Path) -> None:
    whole = trained(stage)
    for _ in range(3):
        bits = trained(stage, out=tmp_path / "bits", loop={**stage["loop"], "max_time_s": 0.0})
    assert len(losses(tmp_path / "lm")) == 3
    assert losses(tmp_path / "bits") == losses(tmp_path / "lm")
    assert {**bits, "out": whole["out"]} == whole


def test_the_stage_trains_the_backbone_and_starts_from_another_training(stage: dict[str, Any], tmp_path: Path) -> None:
    trained(stage)
    lm = hub.load_direct_lm(tmp_path / "lm" / "export")
    untouched = LlamaForCausalLM.from_pretrained(tmp_path / "backbone")
    ours, theirs = lm.trunk.layers[1].mlp.up_proj.weight, untouched.model.layers[1].mlp.up_proj.weight
    assert 0 < (ours - theirs).abs().max() < 0.1
    again = {"out": tmp_path / "more", "start": tmp_path / "lm" / "export"}
    trained(stage, **again, loop={"steps": 1, "learning_rate": 0.0})
    more = hub.load_direct_lm(tmp_path / "more" / "export").state_dict()
    assert all(torch.equal(weight, more[name]) for name, weight in lm.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"units": Path("units")}, "give its source `backbone`, and no `units`"),
        ({"backbone": None}, "give its source `backbone`"),
        ({"model": {"name": "talker"}}, "give the folder `units`, and no `backbone`"),
        ({"model": {"name": "dirct"}}, "no form 'dirct' .*did you mean 'direct'"),
        ({"model": {"name": "direct", "layout": {"name": "aligned"}}}, r"no setting model\.layout"),
        ({"model": {"name": "direct", "timbre_dim": 3}}, r"no setting model\.timbre_dim"),
        ({"task": {"zero_hidden": True}}, r"leave task\.zero_hidden out"),
        ({"task": {"weights": {"control": 1.0}}}, r"'text' has no weight; add it to task\.weights"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    stage: dict[str, Any], changes: dict[str, Any], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("units").mkdir()
    with pytest.raises(ValueError, match=sentence):
        trained(stage, **changes)


def test_the_recipe_keeps_nothing_of_the_talker() -> None:
    recipe = settings.load(RECIPES / "ablations" / "direct.yaml", TrainConfig).run
    assert isinstance(recipe, LMRun)
    assert recipe.model == {"name": "direct", "frames_per_group": 5, "fusion": "concat", "output": "depth"}
    assert (recipe.units, recipe.task) == (None, LMTaskConfig(batch=16))
    for path in sorted(RECIPES.rglob("*.yaml")):
        settings.load(path, TrainConfig)


# -- speaking ---------------------------------------------------------------------------------------------------------
def test_streamed_text_sounds_as_the_whole_text(packaged: Path) -> None:
    model = hub.load(packaged)
    assert isinstance(model.lm, DirectLM)
    assert json.loads((packaged / "config.json").read_text())["form"] == "direct"
    assert model.sampling.seed == 3
    whole = speak_timed(model, SPEECH)
    assert whole.steps > 3
    assert whole.wave.std() > 1e-3
    assert whole.words == []
    for size in (1, 7, 50):
        pieces = [SPEECH[at : at + size] for at in range(0, len(SPEECH), size)]
        assert torch.equal(speak_timed(model, iter(pieces)).wave, whole.wave), size
    other = speak_timed(model, SPEECH, sampling=Sampling(seed=4)).wave
    assert other.shape != whole.wave.shape or not torch.equal(other, whole.wave)


def test_each_sentence_is_spoken_as_soon_as_it_is_there(packaged: Path) -> None:
    model = hub.load(packaged)
    make, made = model.maker.make, []
    model.maker.make = lambda texts: made.extend(texts) or make(texts)
    seen: list[list[str]] = []

    def writer() -> Any:
        for piece in ("Good morn", "ing, Dr. Fox! It", " is late. ", "We like it"):
            yield piece
            seen.append(list(made))

    speak_timed(model, writer())
    first, second, third = "Good morning, Doctor Fox!", "It is late.", "We like it"
    assert seen == [[], [first], [first], [first, second]]
    assert made == [first, second, third]


def test_a_runaway_is_bounded_by_the_length_of_the_text(packaged: Path) -> None:
    model = hub.load(packaged)
    with torch.no_grad():  # the control channel never says that this was the last group
        model.lm.output.heads[0].bias.copy_(torch.tensor([100.0, -100.0]))
    guard = Guard()
    for text in ("hello there", "extraordinarily uncharacteristic"):
        spoken = speak_timed(model, text)
        assert spoken.finish.reason == "length"
        assert f"for {len(text)} characters" in spoken.finish.detail
        bound = 25 * guard.character_s * len(text) + 25 * guard.spare_s
        assert bound < spoken.frames <= bound + 2


def test_a_talker_with_a_text_prefix_takes_a_stream_too() -> None:
    model = tiny_model(layout={"name": "prefix"})
    pieces = [SPEECH[at : at + 9] for at in range(0, len(SPEECH), 9)]
    assert torch.equal(speak_timed(model, pieces).wave, speak_timed(model, SPEECH).wave)


def test_the_commands_speak_and_judge_it(
    packaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name = str(packaged)
    assert running.run(monkeypatch, "say", SPEECH, "--model", name, "-o", "a.wav", "--json", "--group", "2") == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["words"], figures["frames_per_step"]) == ([], 2)
    assert len(audio.read("a.wav")[0]) == speak_timed(hub.load(packaged), SPEECH).wave.numel()

    def fake(speak: Any, texts: list[str], *rest: object) -> dict[str, Any]:
        return {"wer": 1.0, "seconds": sum(speak(text).seconds for text in texts), "rows": []}

    monkeypatch.setattr(speech_report, "speech_report", fake)
    Path("lines.txt").write_text("Hello there.\n")
    arguments = ["eval", "speech", "--model", name, "--sentences", "lines.txt", "--json", "scores.json"]
    assert running.run(monkeypatch, *arguments) == 0
    assert json.loads(Path("scores.json").read_text())["voices"]["first"]["seconds"] > 0

    def write_with(config: object, writer: Any) -> dict[str, Any]:
        return {"found": writer()}

    capsys.readouterr()
    monkeypatch.setattr(build, "build_corpus", write_with)
    said = running.refused(monkeypatch, capsys, "corpus", str(RECIPES.parent / "corpus/config.yaml"), "--model", name)
    assert "writes no text" in said
    said = running.refused(monkeypatch, capsys, "say", SPEECH, "--model", name, "--backbone", "x")
    assert "leave --backbone out" in said


# -- the model folder -------------------------------------------------------------------------------------------------
def test_a_model_of_the_hub_is_downloaded_whole(packaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(finding, "download", lambda repo, patterns, *_: asked.extend(patterns) or packaged)
    assert isinstance(hub.load("some/model").lm, DirectLM)
    files = {path.relative_to(packaged).as_posix() for path in packaged.rglob("*") if path.is_file()}
    fetched = {name for name in files if any(fnmatch.fnmatch(name, pattern) for pattern in asked)}
    assert {path for path in files - fetched if not path.endswith("README.md")} == set()
    assert {"voices.safetensors", "direct/model.safetensors", "tokenizer/tokenizer.json"} <= files


def test_a_model_without_a_form_has_a_talker_and_an_unknown_form_is_refused(packaged: Path, tmp_path: Path) -> None:
    config = json.loads((hub.find_model("tiny-en") / "config.json").read_text())
    assert config.pop("form") == hub.TALKER
    older = shutil.copytree(hub.find_model("tiny-en"), tmp_path / "older")
    (older / "config.json").write_text(json.dumps(config))
    assert model_settings(older)[0]["form"] == hub.TALKER
    config = json.loads((packaged / "config.json").read_text())
    (packaged / "config.json").write_text(json.dumps({**config, "form": "sung"}))
    with pytest.raises(ValueError, match="form 'sung', which this version does not know"):
        hub.load(packaged)


def test_what_lacks_its_tokenizer_is_refused(packaged: Path) -> None:
    (packaged / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match="no tokenizer in"):
        hub.load(packaged)


def test_parts_that_do_not_belong_together_are_not_packaged(stage: dict[str, Any], tmp_path: Path) -> None:
    trained(stage, loop={"steps": 1, "learning_rate": 1e-3})
    package = package_stage(stage, tmp_path)
    (tmp_path / "text").mkdir()
    with pytest.raises(ValueError, match="leave text_encoder out"):
        trained(package, text_encoder=tmp_path / "text")
    lm, voices = hub.load_any_lm(tmp_path / "lm" / "export"), {"v": torch.zeros(CODEC.spec.timbre_dim)}
    entries = {"backbone": {}, "sampling": {}}
    tokenizer = tiny_tokenizer()
    for wrong in ((lm, None), (tiny_lm(), tokenizer)):
        with pytest.raises(ValueError, match="a tokenizer of its own exactly when"):
            hub.save_model(tmp_path / "model", CODEC, wrong[0], voices, entries, tokenizer=wrong[1])
    tokenizer.add_tokens([f"<{i}>" for i in range(20)])
    with pytest.raises(ValueError, match="name the backbone that it was trained from"):
        hub.save_model(tmp_path / "model", CODEC, lm, voices, entries, tokenizer=tokenizer)
    assert not (tmp_path / "model").exists()
