"""Objectives with a layer per offset: against naive losses, one set of logits at a time, curricula, fading, drafts."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

pytest.importorskip("wordfreq", reason="needs the train extra")

from speech_mtp import plugins
from speech_mtp.corpus.document_store import DocumentStore
from speech_mtp.hub import load_head
from speech_mtp.lm.causal_lm import CausalLM
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.nn.transformer import causal
from speech_mtp.nn.visibility import mask_of, within_segments
from speech_mtp.objectives.base import Course, Objective
from speech_mtp.objectives.concept import reflected_sine
from speech_mtp.objectives.ntp import NTP
from speech_mtp.training.loop import LoopConfig, train
from speech_mtp.training.trunk import TrunkTask, TrunkTaskConfig
from speech_mtp.types import LMOutput, Positions
from tests.objectives.allocations import peak_bytes
from tests.objectives.rows import packed, random_rows
from tests.training.tiny_documents import CPU, counting_store

VOCAB = 29
NAMES = ["parallel_heads", "concept"]


@pytest.fixture
def lm() -> CausalLM:
    torch.manual_seed(0)
    lm = CausalLM.tiny(VOCAB)
    with torch.no_grad():
        for weight in lm.parameters():
            weight.normal_(0, 0.2)
    return lm


def bound(lm: CausalLM, spec: dict[str, Any], length: int = 64, steps: int | None = 100) -> Any:
    torch.manual_seed(2)
    objective: Objective = plugins.build("objectives", spec)
    objective.bind(lm, Course(length, steps))
    return objective


def shake(objective: Any) -> None:
    """Random weights: some layers start as the identity."""
    with torch.no_grad():
        for weight in objective.head.parameters():
            weight.normal_(0, 0.2)


def states(lm: CausalLM, objective: Objective, positions: Positions) -> LMOutput:
    mask = mask_of(within_segments(positions.segment), *positions.segment.shape, CPU)
    out: LMOutput = lm(lm.embed(positions.tokens[..., 0]), positions.index, mask, objective.taps)
    return LMOutput(out.hidden.detach().requires_grad_())


def naive(lm: CausalLM, objective: Any, documents: list[list[int]], offset: int) -> Tensor:
    """The mean loss of an offset, each document alone."""
    losses = []
    for document in documents:
        x = lm.embed(torch.tensor([document]))
        hidden = lm(x, *causal(x), objective.head.taps).hidden[:, :, 0]
        made = lm.model.norm(objective.head.blocks[offset - 2](hidden, *causal(hidden)))
        scores = lm.output.logits(made[0, : max(0, len(document) - offset)])
        losses.append(F.cross_entropy(scores, torch.tensor(document[offset:], dtype=torch.long), reduction="none"))
    return torch.cat(losses).mean()


# -- terms ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_every_offset_is_the_mean_over_documents_alone(lm: CausalLM, name: str) -> None:
    documents = [[3, 1, 4, 1, 5, 9, 2], [6, 5, 3], [5, 8, 9, 7, 9]]
    objective, positions = bound(lm, {"name": name}), packed(documents[:2], documents[2:])
    shake(objective)
    objective.at_step(0)
    terms = dict(objective.terms(lm, states(lm, objective, positions), positions))
    assert list(terms) == ["next", "ahead2", "ahead3", "ahead4", "ahead5"][: 1 + len(objective.head.offsets)]
    for offset in objective.head.offsets:
        torch.testing.assert_close(terms[f"ahead{offset}"], naive(lm, objective, documents, offset))
    (plain,) = NTP().terms(lm, states(lm, objective, positions), positions)
    torch.testing.assert_close(terms["next"], plain[1])


def test_meta_s_heads_stand_beside_the_last_layer(lm: CausalLM) -> None:
    """With the last layer's own weights a head is the trunk, and predicts what it predicts, one token later."""
    objective, positions = bound(lm, {"name": "parallel_heads", "n": 2}), packed([[7] * 12])
    objective.head.blocks[0].load_state_dict(lm.model.layers[-1].state_dict())
    out = states(lm, objective, positions)
    terms = dict(objective.terms(lm, out, positions))
    labels = torch.full((10,), 7)
    torch.testing.assert_close(terms["ahead2"], F.cross_entropy(lm.output.logits(out.top[0, :10]), labels))
    assert objective.taps == (lm.config.num_layers - 1, -1)
    assert [objective.weight(name) for name in terms] == [1.0, 1.0]


def test_layers_of_concepts_begin_as_the_last_but_one(lm: CausalLM) -> None:
    objective = bound(lm, {"name": "concept", "num_heads": 2})
    for block in objective.head.blocks:
        for key, value in lm.model.layers[-2].state_dict().items():
            assert torch.equal(block.state_dict()[key], value)
    assert objective.taps == (-1,)


# -- one set of logits at a time ------------------------------------------------------------------------------------
def back_propagated(objective: Objective, lm: CausalLM, out: LMOutput, positions: Positions) -> Callable[[], None]:
    def work() -> None:
        for _, term in objective.terms(lm, out, positions):
            term.backward(retain_graph=True)
            del term

    return work


def test_four_offsets_need_hardly_more_memory_than_one() -> None:
    lm, positions = CausalLM.tiny(32_768), random_rows(1, 256, 32_768)
    ntp = NTP()
    one = peak_bytes(back_propagated(ntp, lm, states(lm, ntp, positions), positions))
    lm.zero_grad()
    four_heads = bound(lm, {"name": "parallel_heads", "n": 4}, length=256)
    four = peak_bytes(back_propagated(four_heads, lm, states(lm, four_heads, positions), positions))
    assert one > 2 * 4 * 256 * 32_768
    assert four < 1.1 * one


@pytest.mark.parametrize("name", NAMES)
def test_sequential_backward_is_the_joint_one(lm: CausalLM, name: str) -> None:
    positions, objective, gradients = random_rows(2, 30, VOCAB), bound(lm, {"name": name}), []
    shake(objective)
    for sequential in (True, False):
        out = states(lm, objective, positions)
        objective.zero_grad()
        if sequential:
            back_propagated(objective, lm, out, positions)()
        else:
            torch.stack([term for _, term in objective.terms(lm, out, positions)]).sum().backward()
        gradients.append([out.hidden.grad, *(p.grad for p in objective.parameters())])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


# -- schedules ------------------------------------------------------------------------------------------------------
def test_heads_that_a_phase_leaves_out_get_no_loss(lm: CausalLM) -> None:
    phases = [{"k": 2, "steps": 5, "weights": [1.0, 0.5]}, {"k": 1, "steps": 5}, {"k": 3}]
    objective, positions = bound(lm, {"name": "parallel_heads", "curriculum": phases}), random_rows(1, 20, VOCAB)
    found = []
    for number in (0, 5, 10):
        objective.at_step(number)
        terms = dict(objective.terms(lm, states(lm, objective, positions), positions))
        found.append({name: objective.weight(name) for name in terms})
    assert found == [{"next": 1.0, "ahead2": 0.5}, {"next": 1.0}, {"next": 1.0, "ahead2": 1.0, "ahead3": 1.0}]


def test_concepts_fade_by_the_published_formula(lm: CausalLM) -> None:
    objective = bound(lm, {"name": "concept", "warmup": 20})
    weights = {}
    for number in (0, 19, 20, 60, 99):
        objective.at_step(number)
        weights[number] = [objective.weight(name) for name in ("next", "ahead2", "ahead3")]
    assert weights[0][1:] == weights[19][1:] == pytest.approx([0.8, 0.64])
    assert weights[20] == pytest.approx([1, 0.01 * 0.8, 0.01 * 0.64])
    half = 0.01 * math.sin(math.pi / 4)
    assert weights[60] == pytest.approx([1, half * 0.8, half * 0.64])
    assert 0 < weights[99][1] < 0.01 * 0.8 * 0.03
    assert (reflected_sine(0, 7), reflected_sine(7, 7)) == (1.0, 0.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> DocumentStore:
    return counting_store(tmp_path_factory.mktemp("store") / "documents")


def task_of(store: DocumentStore, spec: dict[str, Any], steps: int = 3) -> TrunkTask:
    torch.manual_seed(0)
    config = TrunkTaskConfig(batch=2, length=32, amp=False)
    return TrunkTask(CausalLM.tiny(), store, config, CPU, objective=plugins.build("objectives", spec), steps=steps)


def copied(module: torch.nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def moved(module: torch.nn.Module, before: list[Tensor]) -> list[bool]:
    return [not torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True)]


def test_the_trunk_stands_still_while_its_heads_warm_up(store: DocumentStore) -> None:
    task = task_of(store, {"name": "concept", "warmup": 2})
    trunk, objective = copied(task.lm), copied(task.modules["objective"])
    for number in range(2):
        assert "next" not in task.step(number, 1e-2)
    assert not any(moved(task.lm, trunk))
    assert all(moved(task.modules["objective"], objective))
    assert "next" in task.step(2, 1e-2)
    assert all(moved(task.lm, trunk))


def test_what_a_curriculum_has_not_reached_stands_still(store: DocumentStore) -> None:
    task = task_of(store, {"name": "parallel_heads", "n": 3, "curriculum": "forward"})
    head: Any = task.modules["objective"]
    for number, learnt in enumerate(([False, False], [True, False], [True, True])):
        before = [copied(block) for block in head.head.blocks]
        task.step(number, 1e-2)
        assert [any(moved(block, old)) for block, old in zip(head.head.blocks, before, strict=True)] == learnt


def test_a_phase_waits_for_a_plateau_of_the_held_out_loss_across_a_stop(store: DocumentStore, tmp_path: Path) -> None:
    # No loss falls by 100 nats, so every phase is over two measurements after its first.
    spec = {"name": "parallel_heads", "n": 3, "curriculum": {"name": "forward", "plateau": 2, "gain": 100.0}}
    loop = LoopConfig(steps=8, learning_rate=1e-2, warmup=0, log_every=1, evaluate_every=1, save_every_s=0.0)
    for _ in range(8):
        train(task_of(store, spec), replace(loop, max_time_s=0.0), tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    depths = [1 + ("ahead2" in line) + ("ahead3" in line) for line in lines if "next" in line]
    assert depths == [1, 1, 1, 2, 2, 2, 3, 3]


# -- what is left ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_layers_are_left_as_a_draft_head(store: DocumentStore, tmp_path: Path, name: str) -> None:
    task = task_of(store, {"name": name})
    for number in range(2):
        task.step(number, 1e-2)
    shake(task.objective)
    task.export(tmp_path / "export")
    theirs = TextLM.from_folder(tmp_path / "export")
    head, tokens = load_head(tmp_path / "export/head", theirs), torch.randint(257, (1, 20))
    x = theirs.embed(tokens)
    with torch.no_grad():
        scores = dict(head.unroll(theirs.trunk_states(x, *causal(x), None, head.taps), tokens))
        hidden = task.lm(task.lm.embed(tokens), *causal(x), head.taps).hidden[:, :, 0]
        ours: Any = task.objective
        for j, offset in enumerate(head.offsets):
            made = task.lm.model.norm(ours.head.blocks[j](hidden, *causal(hidden)))
            torch.testing.assert_close(scores[offset], task.lm.output.logits(made), atol=1e-4, rtol=1e-4)


# -- settings -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"name": "parallel_heads", "n": 1}, "it is 'ntp'"),
        ({"name": "parallel_heads", "n": 65}, "k is 65, but the rows have 64 tokens"),
        ({"name": "concept", "num_heads": 64}, "num_heads is 64, but the rows have 64 tokens"),
        ({"name": "concept", "gamma": 0.0}, "gamma 0.0"),
        ({"name": "concept", "warmup": 100}, "warm-up of 100 steps leaves no step of 100"),
    ],
)
def test_settings_that_do_not_fit_are_refused(lm: CausalLM, spec: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        bound(lm, spec)
