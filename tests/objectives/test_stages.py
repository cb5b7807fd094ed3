"""Objectives in recipes: a run from nothing, bad settings told before any training, and two processes."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("wordfreq", reason="needs the train extra")

from speech_mtp import plugins
from speech_mtp.decoding import text
from speech_mtp.decoding.chain import Chain
from speech_mtp.hub import load_head
from speech_mtp.lm.causal_lm import CausalLM
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.training.distributed import Workers
from speech_mtp.training.loop import LoopConfig, train
from speech_mtp.training.runs import run
from speech_mtp.training.stages import TrainConfig
from speech_mtp.training.trunk import TrunkTask, TrunkTaskConfig
from speech_mtp.types import Sampling
from tests.training.test_two_processes import launch
from tests.training.tiny_documents import CPU, counting_store

LOOP = LoopConfig(steps=6, learning_rate=1e-2, warmup=0, log_every=1, evaluate_every=1, save_every_s=1e9)
STAGED = {
    "concept": {"name": "concept", "num_heads": 2, "warmup": 3},
    "plateau": {"name": "parallel_heads", "n": 3, "curriculum": {"name": "forward", "plateau": 2, "gain": 100.0}},
}
"""Objectives some of whose parameters, or of the trunk's, learn nothing at some steps."""


def recipe(folder: Path, objective: dict[str, Any], **loop: Any) -> TrainConfig:
    values = {
        "kind": "trunk",
        "out": str(folder / "out"),
        "documents": str(folder / "documents"),
        "model": {"dim": 32, "num_layers": 2},
        "objective": objective,
        "task": {"batch": 4, "length": 32},
        "loop": {"steps": 4, "learning_rate": 1e-3, "warmup": 2, **loop},
        "device": "cpu",
    }
    return TrainConfig.model_validate({"run": values})


def test_a_recipe_leaves_a_trunk_that_speculates_by_itself(tmp_path: Path) -> None:
    counting_store(tmp_path / "documents")
    run(recipe(tmp_path, {"name": "parallel_heads", "n": 3, "curriculum": "forward"}, steps=80, learning_rate=1e-2))
    lm = TextLM.from_folder(tmp_path / "out/export")
    head, prompts = load_head(tmp_path / "out/export/head", lm), [list(b"2 3 4 5 6")]
    assert head.offsets == (2, 3)
    plain, drafted = (text.start(lm, prompts, Sampling(temperature=0), rule, 12) for rule in (None, Chain(head)))
    assert drafted.complete() == plain.complete()
    assert drafted.statistics.tokens_per_forward > 1.5


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ({"name": "parallel_heads", "n": 33}, "k is 33, but the rows have 32 tokens"),
        ({"name": "registers", "d_max": 40}, "k is 40, but the rows have 32 tokens"),
        ({"name": "parallel_heads", "curriculum": [{"k": 1, "epochs": 2}, {"k": 2}]}, "has no setting 'epochs'"),
        ({"name": "parallel_heads", "curriculum": "sideways"}, "There is no curriculum 'sideways'"),
        ({"name": "token_order", "windows": 8}, "no setting 'windows'; did you mean 'window'"),
        ({"name": "concept", "warmup": 4}, "leaves no step of 4 to the trunk"),
        ({"name": "direct"}, "only the direct form"),
    ],
)
def test_bad_settings_are_one_sentence_before_any_training(
    tmp_path: Path, objective: dict[str, Any], words: str
) -> None:
    counting_store(tmp_path / "documents")
    with pytest.raises(ValueError, match=words):
        run(recipe(tmp_path, objective))
    assert not (tmp_path / "out").exists()


def staged_run(name: str, folder: Path, workers: Workers | None = None, accumulate: int = 2) -> None:
    torch.manual_seed(0)
    config = TrunkTaskConfig(batch=2, length=32, accumulate=accumulate, amp=False)
    objective = plugins.build("objectives", STAGED[name])
    store = counting_store(folder / "documents")
    task = TrunkTask(CausalLM.tiny(), store, config, CPU, workers, objective, LOOP.steps)
    train(task, replace(LOOP, save_every_s=0.0), folder / f"{name}{accumulate}", workers)


def main(folder: Path) -> None:
    """What each of two processes runs."""
    workers = Workers()
    for name in STAGED:
        staged_run(name, folder, workers)


@pytest.mark.slow  # the same guarantee is tested on a cheaper task among the fast ones
@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="needs accelerate (the extra 'train')")
def test_two_processes_let_the_same_things_stand_still_as_one(tmp_path: Path) -> None:
    counting_store(tmp_path / "documents")
    launch(tmp_path, launcher=False, module=__name__)
    for name in STAGED:
        staged_run(name, tmp_path, accumulate=4)
        for part in ("trunk", "objective"):
            two, one = (load_file(tmp_path / f"{name}{n}/last/{part}.safetensors") for n in (2, 4))
            for key in one.keys() - {"curriculum._extra_state"}:
                torch.testing.assert_close(two[key], one[key], atol=1e-5, rtol=1e-3)
