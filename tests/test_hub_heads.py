"""Heads on disk: they come back as they were, and only to the trunk that they were trained on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from speech_mtp import hub, plugins
from speech_mtp.heads.base import Binding, MTPHead, TrunkShape
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.training.runs import run
from speech_mtp.training.stages import PackageHeadRun, TrainConfig
from speech_mtp.types import LMOutput
from tests.test_hub import pickle_inside, scramble, truncate, zip_inside
from tests.training.tiny_text import VOCAB, tiny_text_lm

SPEC: dict[str, Any] = {"name": "medusa", "num_heads": 3, "private": True, "draft_vocab": 30}


def trained(lm: TextLM, spec: dict[str, Any]) -> MTPHead:
    """A head with random weights and a vocabulary of its own."""
    head: MTPHead = plugins.build("heads", spec, shape=TrunkShape(**lm.shape()))
    if head.token_map is not None:
        head.set_vocabulary(torch.arange(head.num_tokens).flip(0) + 5)
    head.bind(Binding(**lm.binding()))
    with torch.no_grad():
        for weight in head.parameters():
            weight.normal_(0, 0.2)
    return head.eval()


def scores(head: MTPHead) -> dict[int, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 9, len(head.taps), 32, generator=rng)
    tokens = torch.randint(VOCAB, (2, 9), generator=rng)
    with torch.no_grad():
        return dict(head.unroll(LMOutput(hidden), tokens))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    lm = tiny_text_lm()
    hub.save_head(trained(lm, SPEC), tmp_path / "head", SPEC, "tiny", card="# A head")
    return tmp_path / "head"


@pytest.mark.parametrize("spec", [SPEC, {"name": "medusa", "taps": (1, -1), "feed": "mixture"}])
@pytest.mark.parametrize(("dtype", "error"), [("fp32", 0.0), ("bf16", 0.05), ("int8", 0.1)])
def test_a_head_comes_back(tmp_path: Path, spec: dict[str, Any], dtype: hub.Storage, error: float) -> None:
    lm = tiny_text_lm()
    head = trained(lm, spec)
    hub.save_head(head, tmp_path / "head", spec, lm.fingerprint, dtype)
    back = hub.load_head(tmp_path / "head", lm)
    assert (type(back), back.offsets, back.taps, back.training) == (type(head), head.offsets, head.taps, False)
    assert head.token_map is None or torch.equal(back.to_target(torch.arange(9)), head.to_target(torch.arange(9)))
    for ours, theirs in zip(scores(back).values(), scores(head).values(), strict=True):
        assert (ours - theirs).abs().max() <= error * theirs.abs().max()
    config = json.loads((tmp_path / "head" / "config.json").read_text())
    assert config["offsets"] == list(head.offsets)
    assert (config["backbone"], config["trunk"]["vocab_size"], config["storage"]) == ("tiny", VOCAB, dtype)


def test_another_backbone_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"trained on another backbone \(fingerprint tiny\) than this one \(other\)"):
        hub.load_head(saved, tiny_text_lm(fingerprint="other"))
    with pytest.raises(ValueError, match="vocabulary of 41 tokens, but this model has 50"):
        hub.load_head(saved, tiny_text_lm(vocab_size=50))


@pytest.mark.parametrize("damage", [truncate, scramble, pickle_inside, zip_inside])
def test_damaged_files_are_refused_in_one_sentence(saved: Path, damage: Callable[[Path], None]) -> None:
    damage(saved)
    with pytest.raises(ValueError, match=r"is truncated or damaged|is a pickle") as error:
        hub.load_head(saved, tiny_text_lm())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"kind": "codec"}, "holds a codec, not a head"),
        ({"trunk": {"size": 3}}, "settings that this version does not know"),
        ({"head": {**SPEC, "num_heads": 2}}, r"lists the offsets \(2, 3, 4\), but its head has \(2, 3\)"),
        ({"head": {**SPEC, "private": False}}, "do not fit together"),
        ({"accuracies": 0.5}, "accuracies must be lists of numbers from 0 to 1"),
        ({"accuracies": [[0.5, "01"], [0.5], [0.5]]}, "accuracies must be lists of numbers from 0 to 1"),
        ({"accuracies": [[0.5, 1.5], [0.5], [0.5]]}, "accuracies must be lists of numbers from 0 to 1"),
        ({"accuracies": [[0.5], [True], [0.5]]}, "accuracies must be lists of numbers from 0 to 1"),
        ({"accuracies": [[0.5]]}, "one list per offset"),
        ({"head": {"name": "medusae"}}, "There is no 'medusae' in heads; did you mean 'medusa'"),
    ],
)
def test_a_changed_config_is_refused(saved: Path, entries: dict[str, Any], sentence: str) -> None:
    path = saved / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))
    with pytest.raises(ValueError, match=sentence) as error:
        hub.load_head(saved, tiny_text_lm())
    assert "\n" not in str(error.value)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no checkpoint in"):
        hub.load_head(tmp_path / "nothing", tiny_text_lm())


def test_a_head_is_stored_again_with_fewer_bits(tmp_path: Path) -> None:
    lm = tiny_text_lm()
    spec = {"name": "eagle3", "taps": [0, 1, 2], "private": False, "intermediate_size": 1024}
    head = trained(lm, spec)
    head.accuracies = [[0.5, 0.25]] * len(head.offsets)
    hub.save_head(head, tmp_path / "head", spec, lm.fingerprint)
    (tmp_path / "card.md").write_text("# A small head")
    given = {"kind": "package_head", "out": tmp_path / "small", "head": tmp_path / "head", "card": tmp_path / "card.md"}
    found = run(TrainConfig(run=PackageHeadRun(**given)))
    assert found["bytes"] == sum(path.stat().st_size for path in (tmp_path / "small").iterdir())
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("head", "small")]
    assert sizes[1] < 0.4 * sizes[0]
    assert (tmp_path / "small" / "README.md").read_text() == "# A small head"
    back = hub.load_head(tmp_path / "small", lm)
    assert back.accuracies == head.accuracies
    for ours, theirs in zip(scores(back).values(), scores(head).values(), strict=True):
        assert (ours - theirs).abs().max() <= 0.1 * theirs.abs().max()
