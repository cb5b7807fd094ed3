"""What every objective of a trunk promises: the folder is walked, so a new file is tested on arrival."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

pytest.importorskip("wordfreq", reason="needs the train extra")

from speech_mtp import plugins
from speech_mtp.corpus.document_store import DocumentStore
from speech_mtp.lm.causal_lm import CausalLM
from speech_mtp.nn.transformer import causal
from speech_mtp.training.loop import LoopConfig, train
from speech_mtp.training.trunk import TrunkTask, TrunkTaskConfig
from tests.training.tiny_documents import CPU, counting_store

OF_SPEECH = {"codes", "direct", "frames"}
TEACHER = "teacher"
NAMES = [name for name in plugins.names("objectives") if name not in OF_SPEECH]
LOOP = LoopConfig(steps=2, learning_rate=1e-2, warmup=0, log_every=1, evaluate_every=1, save_every_s=0.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> DocumentStore:
    """Documents, and beside them a trunk that has learnt a little of them: a teacher."""
    store = counting_store(tmp_path_factory.mktemp("store") / "documents")
    teacher = task_of("ntp", store)
    for number in range(40):
        teacher.step(number, 5e-3)
    teacher.export(store.folder.parent / TEACHER)
    return store


def spec_of(name: str, store: DocumentStore) -> dict[str, str]:
    """The least that an objective must be told."""
    needed = {"distill": {"teacher": str(store.folder.parent / TEACHER)}}
    return {"name": name, **needed.get(name, {})}


def task_of(
    name: str, store: DocumentStore, amp: bool = False, steps: int = LOOP.steps, device: torch.device = CPU
) -> TrunkTask:
    torch.manual_seed(0)
    lm, config = CausalLM.tiny(), TrunkTaskConfig(batch=2, length=32, accumulate=2, amp=amp)
    return TrunkTask(
        lm, store, config, device, objective=plugins.build("objectives", spec_of(name, store)), steps=steps
    )


def weights(task: TrunkTask) -> Iterator[tuple[str, Tensor]]:
    for part, module in task.modules.items():
        for key, value in module.state_dict().items():
            yield f"{part}.{key}", value.clone()


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_train_everything_and_may_be_cut(name: str, store: DocumentStore, tmp_path: Path) -> None:
    whole, first, second = (task_of(name, store) for _ in range(3))
    before = dict(weights(whole))
    scores = train(whole, LOOP, tmp_path / "whole")
    train(first, replace(LOOP, max_time_s=0.0), tmp_path / "cut")
    assert json.loads((tmp_path / "cut/last/state.json").read_text())["step"] == 1
    assert train(second, LOOP, tmp_path / "cut") == scores
    after, cut = dict(weights(whole)), dict(weights(second))
    assert after.keys() == cut.keys()
    assert all(torch.equal(after[key], cut[key]) for key in after)
    assert all(not torch.equal(before[key], after[key]) for key in before if not key.endswith("_extra_state"))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_left_is_a_plain_trunk(name: str, store: DocumentStore, tmp_path: Path) -> None:
    task = task_of(name, store)
    task.step(0, 1e-2)
    task.export(tmp_path / "export")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert theirs.num_parameters() == sum(p.numel() for p in CausalLM.tiny().parameters())
    tokens = torch.randint(257, (2, 20))
    x = task.lm.embed(tokens)
    ours = task.lm.output.logits(task.lm(x, *causal(x)).top)
    torch.testing.assert_close(theirs(tokens).logits, ours, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_terms_are_named_and_what_is_logged_is_their_weighted_sum(name: str, store: DocumentStore) -> None:
    task = task_of(name, store)
    task.objective.at_step(1)
    found = task.backward(task.train_data.batch(0), 1.0)
    terms = {key: float(value) for key, value in found.items() if key != "loss"}
    assert terms
    assert all(value > 0 for value in terms.values())
    total = sum(task.objective.weight(key) * value for key, value in terms.items())
    assert float(found["loss"]) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_every_term_falls(name: str, store: DocumentStore) -> None:
    task = task_of(name, store, steps=100)
    found = []
    for number in range(25):
        torch.manual_seed(number)
        found.append({key: value for key, value in task.step(number, 5e-3).items() if key != "norm"})
    assert found[0].keys() == found[-1].keys()
    assert all(found[-1][key] < 0.8 * found[0][key] for key in found[0]), (found[0], found[-1])


@pytest.mark.parametrize("name", NAMES)
def test_mixed_precision_takes_the_same_way(name: str, store: DocumentStore) -> None:
    plain, mixed = task_of(name, store), task_of(name, store, amp=True)
    for number in range(2):
        losses = []
        for task in (plain, mixed):
            torch.manual_seed(number)
            losses.append(float(task.step(number, 1e-3)["loss"]))
        assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert {p.dtype for p in mixed.parameters} == {torch.float32}


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_takes_the_same_way(name: str, store: DocumentStore) -> None:
    here, there = task_of(name, store), task_of(name, store, device=torch.device("cuda"))
    for part, module in here.modules.items():
        there.modules[part].load_state_dict(module.state_dict())
    for number in range(2):
        losses = []
        for task in (here, there):
            torch.manual_seed(number)
            losses.append(float(task.step(number, 1e-3)["loss"]))
        assert losses[0] == pytest.approx(losses[1], rel=1e-3)
