"""Heads learn from a trunk's answers: alone, together, after a kill, packed, and with a trunk that learns too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

pytest.importorskip("wordfreq", reason="needs the train extra")

from speech_mtp import hub, plugins
from speech_mtp.corpus.answers import Answer
from speech_mtp.decoding import catalogue
from speech_mtp.decoding.tree import Tree
from speech_mtp.heads.base import MTPHead, TrunkShape
from speech_mtp.layouts.base import IGNORE
from speech_mtp.lm.fingerprint import fingerprint_of
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.objectives.mtp import MTPConfig, labels_at
from speech_mtp.training import runs
from speech_mtp.training.answer_data import AnswerData, AnswerDataConfig, collate, fill_rows, frequent_tokens, split
from speech_mtp.training.loop import LoopConfig, train
from speech_mtp.training.lora import LoRAConfig
from speech_mtp.training.runs import run
from speech_mtp.training.stages import TrainConfig
from speech_mtp.training.text_mtp import HeadSettings, Sums, TextMTPTask, TextMTPTaskConfig, build_head
from speech_mtp.types import LMOutput
from tests.llama import random_llama
from tests.lm.tiny import CHAT, tiny_tokenizer
from tests.training.test_resume import ROOT, curve, kill_after_a_checkpoint, one_thread  # noqa: F401
from tests.training.tiny_text import counting_answers, tiny_text_lm

LOOP = LoopConfig(steps=150, learning_rate=0.02, warmup=3, log_every=1, evaluate_every=60, save_every_s=0.1)
DATA: dict[str, Any] = {"batch": 6, "length": 48, "pad_to": 8, "dev_every": 8}
MEDUSA = HeadSettings({"name": "medusa", "num_heads": 3})


def task(heads: dict[str, HeadSettings], data: dict[str, Any] | None = None, **more: Any) -> TextMTPTask:
    lm, answers = tiny_text_lm(), counting_answers(70)
    built = {name: build_head(s.head, lm, answers, 0) for name, s in heads.items()}
    return TextMTPTask(lm, built, heads, answers, TextMTPTaskConfig(AnswerDataConfig(**DATA | (data or {})), **more))


class Peeking(MTPHead):
    """Drafts from the mean of all states up to a position, with a dropout that draws random numbers."""

    def __init__(self, shape: TrunkShape) -> None:
        super().__init__(shape, (2, 3))
        self.map = nn.Linear(shape.dim, shape.dim)
        nn.init.zeros_(self.map.weight)

    def unroll_states(self, out: LMOutput, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        for offset in self.offsets:
            mean = self.mix(out.hidden).cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]
            yield offset, nn.functional.dropout(self.map(mean), 0.1, self.training)

    def root(self, state: Any) -> Tensor:
        raise AssertionError("not used in training")

    expand = root  # type: ignore[assignment]


PEEKING = HeadSettings({"name": f"{__name__}:Peeking"})


# -- data -----------------------------------------------------------------------------------------------------------
def test_rows_are_filled_and_nothing_is_lost() -> None:
    sizes = [n % 13 + 3 for n in range(200)]
    rows = fill_rows(sizes, list(range(200)), length=40)
    assert sorted(i for row in rows for i in row) == list(range(200))
    used = [sum(sizes[i] for i in row) for row in rows]
    assert max(used) <= 40
    assert sum(used) > 0.93 * 40 * len(rows)


def test_a_batch_holds_answers_as_they_were_generated() -> None:
    positions = collate([[Answer((7, 8), (9, 1)), Answer((5,), (6, 4, 2))], [Answer((3,), (4,))]], length=3, pad_to=8)
    assert positions.tokens[..., 0].tolist() == [[7, 8, 9, 5, 6, 4, 0, 0], [3, 4, 0, 0, 0, 0, 0, 0]]
    assert positions.labels is not None
    x = IGNORE
    assert positions.labels[..., 0].tolist() == [[x, 9, x, 6, 4, x, x, x], [4, x, x, x, x, x, x, x]]
    assert positions.index.tolist() == [[0, 1, 2, 0, 1, 2, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0]]
    assert positions.segment.tolist() == [[1, 1, 1, 2, 2, 2, 0, 0], [1, 1, 0, 0, 0, 0, 0, 0]]


def test_prompts_are_labels_where_that_is_asked_for() -> None:
    positions = collate([[Answer((7, 8), (9, 1)), Answer((5,), (6, 4))]], length=9, prompts=True)
    assert positions.labels is not None
    assert positions.labels[..., 0].tolist() == [[8, 9, 1, IGNORE, 6, 4, IGNORE]]
    soft = HeadSettings({"name": "medusa"}, MTPConfig(losses={"soft": 1.0}))
    learner = task({"medusa": soft}, {"prompts": True})
    plain = task({"medusa": soft})
    counts = [int((t.train_data.batch(0).labels != IGNORE).sum()) for t in (learner, plain)]
    assert counts[0] == counts[1] + len(plain.train_data.batch(0).tokens)
    assert torch.equal(learner.dev_data.batch(0).labels, plain.dev_data.batch(0).labels)
    with pytest.raises(ValueError, match="no hard target"):
        task({"medusa": MEDUSA}, {"prompts": True})


@pytest.mark.parametrize("pack", [False, True])
def test_every_pass_reads_every_answer_in_another_order(pack: bool) -> None:
    answers = counting_answers(50)
    data = AnswerData(answers, AnswerDataConfig(**DATA, pack=pack))
    again = AnswerData(answers, AnswerDataConfig(**DATA, pack=pack))
    seen = []
    for epoch in range(2):
        rows = []
        for number in range(epoch * len(data), (epoch + 1) * len(data)):
            batch = data.batch(number)
            assert batch.tokens.shape[1] % 8 == 0
            assert torch.equal(batch.tokens, again.batch(number).tokens)
            rows += [
                tuple(row[s == i].tolist())
                for row, s in zip(batch.tokens[..., 0], batch.segment, strict=True)
                for i in s.unique()[s.unique() > 0]
            ]
        seen.append(rows)
    assert sorted(seen[0]) == sorted(seen[1]) == sorted(a.prompt + a.answer for a in answers)
    assert seen[0] != seen[1]


def test_held_out_answers_are_not_trained_on() -> None:
    answers = counting_answers(40)
    told, dev = split(answers, 8)
    assert len(dev) == 5
    assert not set(told) & set(dev)
    assert set(told) | set(dev) == set(answers)
    with pytest.raises(ValueError, match="no answer to train on"):
        AnswerData([Answer((1,) * 9, (2,))], AnswerDataConfig(length=9))


def test_the_draft_vocabulary_is_what_answers_say_most() -> None:
    answers = [Answer((9, 9, 9), (3, 3, 1)), Answer((9,), (3, 1, 4))]
    assert frequent_tokens(answers, 5).tolist() == [3, 1, 4, 0, 2]
    head = build_head({"name": "medusa", "draft_vocab": 3, "private": True}, tiny_text_lm(), answers, 0)
    assert head.to_target(torch.arange(3)).tolist() == [3, 1, 4]
    assert torch.equal(dict(head.named_parameters())["private.0.weight"], head.unembedding())


# -- training -------------------------------------------------------------------------------------------------------
def test_heads_learn_to_draft(tmp_path: Path) -> None:
    heads = {
        "medusa": HeadSettings({"name": "medusa", "num_heads": 3, "private": True}),
        "mixed": HeadSettings(
            {"name": "medusa", "num_heads": 2, "taps": [1, -1], "feed": "mixture", "draft_vocab": 39},
            MTPConfig(losses={"soft": 1.0}, weighting="geometric"),
        ),
    }
    learner = task(heads)
    before = learner.evaluate()
    after = train(learner, LOOP, tmp_path)
    for k in (2, 3, 4):
        assert after[f"medusa/{k}"] < 0.4 * before[f"medusa/{k}"]
    assert after["mixed/2"] < 0.8 * before["mixed/2"]
    assert after["medusa/accept/2"] > before["medusa/accept/2"] + 0.5
    product = after["medusa/conditional/2"]
    total = 1 + product
    for i in (3, 4):
        product *= after[f"medusa/conditional/{i}"]
        total += product
    assert after["medusa/tokens_per_forward"] == pytest.approx(total)
    lines = curve(tmp_path)
    assert {"loss", "medusa/2", "medusa/4", "mixed/3", "medusa/accept/4", "norm/mixed"} <= lines[0].keys()
    assert lines[-1]["dev/medusa/accept/2"] == after["medusa/accept/2"]


def test_a_trained_head_knows_how_good_its_guesses_are(tmp_path: Path) -> None:
    spec = {"name": "medusa", "num_heads": 2, "private": True, "draft_vocab": 20}
    learner = task({"medusa": HeadSettings(spec)})
    train(learner, LoopConfig(steps=60, learning_rate=0.02, warmup=3), tmp_path)
    learner.export(tmp_path / "export")
    head = hub.load_head(tmp_path / "export" / "medusa", learner.lm)
    assert head.accuracies is not None
    # Again by hand: the share of held-out tokens that are the first, second, ... guess two positions on.
    hits, total = torch.zeros(10), 0
    for number in range(len(learner.dev_data)):
        positions = learner.dev_data.batch(number)
        with torch.no_grad(), learner.states(positions, grad=False) as (out, _):
            logits = dict(learner.heads["medusa"].unroll(LMOutput(out.hidden.float()), positions.tokens[..., 0]))[2]
        labels = labels_at(positions, 2, 2)
        for b, t in (labels != IGNORE).nonzero().tolist():
            order = head.to_target(logits[b, t].argsort(descending=True)).tolist()
            total += 1
            if int(labels[b, t]) in order[:10]:
                hits[order.index(int(labels[b, t]))] += 1
    assert head.accuracies[0] == pytest.approx((hits / total).tolist(), abs=1e-4)
    assert head.accuracies[0][0] > 0.2
    tree = catalogue.build({"name": "tree", "shape": "static", "nodes": 5}, head)
    assert isinstance(tree, Tree)
    assert sum(len(level.parents) for level in tree.levels) == 5
    head.accuracies = None
    with pytest.raises(ValueError, match="paths or accuracies make a static tree"):
        catalogue.build({"name": "tree", "shape": "static"}, head)


def test_heads_trained_together_are_what_they_are_alone(tmp_path: Path) -> None:
    private = HeadSettings({"name": "medusa", "private": True}, MTPConfig(losses={"hard": 3.0}))
    loop = LoopConfig(steps=4, learning_rate=5e-3, warmup=1)
    both, alone = task({"private": private, "medusa": MEDUSA}), task({"medusa": MEDUSA})
    train(both, loop, tmp_path / "both")
    train(alone, loop, tmp_path / "alone")
    for ours, theirs in zip(both.heads["medusa"].parameters(), alone.heads["medusa"].parameters(), strict=True):
        assert torch.equal(ours, theirs)
        assert bool((ours != 0).any())


@pytest.mark.parametrize("name", ["medusa", "deepseek", "fastmtp"])
def test_packed_answers_train_the_same(name: str) -> None:
    whole = {"batch": 1000, "length": 64}
    settings = HeadSettings({"name": name}, MTPConfig())
    packed, alone = (task({"head": settings}, {**whole, "pack": pack}) for pack in (True, False))
    assert packed.train_data.batch(0).tokens.shape[0] < 0.5 * alone.train_data.batch(0).tokens.shape[0]
    ours, theirs = packed.step(0, 1e-3), alone.step(0, 1e-3)
    assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.usefixtures("adapters")
@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=4, heads_weight=0.3)], ids=["frozen", "joint"])
def test_light_terms_come_as_one_and_weigh_what_they_do_alone(lora: LoRAConfig | None) -> None:
    settings = HeadSettings({"name": "fastmtp", "draft_vocab": 20}, MTPConfig(losses={"soft": 1.0}))
    learner = task({"fastmtp": settings, "medusa": MEDUSA}, lora=lora)
    positions, head = learner.train_data.batch(0), learner.heads["fastmtp"]
    learner.backward(positions)
    ours = [p.grad.clone() for p in head.parameters()]
    head.zero_grad()
    with learner.states(positions, grad=False) as (out, moved):
        steps = list(learner.objectives["fastmtp"].steps(LMOutput(out.hidden.detach()), moved))
        terms = list(learner.terms(LMOutput(out.hidden.detach()), moved, Sums()))
    assert all(step.light for step in steps)
    assert len(terms) == (1 if lora is None else 2) + 3
    (torch.stack([0.8**k * step.loss for k, step in enumerate(steps)]).sum() * (0.3 if lora else 1)).backward()
    torch.testing.assert_close(ours, [p.grad for p in head.parameters()], rtol=1e-4, atol=1e-6)
    assert any(bool(grad.any()) for grad in ours)


def test_rows_longer_than_the_model_reads_are_refused() -> None:
    with pytest.raises(ValueError, match="length is 200, but the model reads 128"):
        task({"m": MEDUSA}, {"length": 200})


def test_kept_states_are_those_that_would_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    heads = {"eagle3": HeadSettings({"name": "eagle3", "taps": [1, 2], "depth": 2}), "medusa": MEDUSA}
    keeping, reading, short = task(heads, keep_gb=1.0), task(heads), task(heads, keep_gb=1e-5)
    passes, reads = 3 * len(keeping.train_data), []
    read = TextLM.trunk_states
    monkeypatch.setattr(TextLM, "trunk_states", lambda *given, **more: reads.append(1) or read(*given, **more))
    counts, losses = [], []
    for learner in (reading, keeping, short):
        losses.append([learner.step(number, 1e-2)["loss"] for number in range(passes)])
        counts.append(len(reads))
        reads.clear()
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[2] == pytest.approx(losses[0], rel=1e-4)
    assert counts[0] == passes
    assert counts[1] == len(keeping.train_data)
    assert counts[1] < counts[2] <= passes
    with pytest.raises(ValueError, match="trunk that learns cannot be kept; set keep_gb to 0"):
        task(heads, keep_gb=1.0, lora=LoRAConfig())


def test_mixed_precision_takes_the_same_way() -> None:
    plain, mixed = task({"medusa": MEDUSA}), task({"medusa": MEDUSA}, amp=True)
    for number in range(3):
        ours, theirs = mixed.step(number, 1e-3), plain.step(number, 1e-3)
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)
    assert {p.grad.dtype for p in mixed.heads["medusa"].parameters() if p.grad is not None} == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")


def test_an_evaluation_repeats_itself() -> None:
    """The anchors of a block drafter are the same every time, and nothing is dropped."""
    block = {"name": "dflash", "num_drafts": 2, "num_layers": 1, "taps": [1]}
    learner = task({"block": HeadSettings(block, MTPConfig(anchors=1)), "peeking": PEEKING})
    learner.step(0, 1e-2)
    torch.manual_seed(1)
    once = learner.evaluate()
    torch.manual_seed(2)
    assert learner.evaluate() == once


def test_the_seed_decides_how_a_head_begins() -> None:
    heads = [build_head({"name": "eagle3", "taps": [1, 2]}, tiny_text_lm(), [], seed) for seed in (0, 0, 1)]
    first, again, other = (torch.cat([p.detach().flatten() for p in head.parameters()]) for head in heads)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.usefixtures("adapters")
def test_rates_decay_and_clipping_are_those_asked_for() -> None:
    lora = LoRAConfig(rank=4, rate_scale=0.5)
    learner = task({"medusa": MEDUSA}, lora=lora, grad_clip=0.01, weight_decay=0.3)
    optimizer, norms = learner.optimizers["heads"], []

    def note(*_: Any) -> None:
        for module in learner.modules.values():
            norms.append(float(torch.stack([p.grad.norm() for p in module.parameters()]).norm()))

    optimizer.register_step_pre_hook(note)
    scores = learner.step(0, 1e-2)
    assert norms == pytest.approx([0.01, 0.01], rel=1e-2)
    assert min(scores["norm/medusa"], scores["norm/adapters"]) > 0.01
    groups = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert groups == [(1e-2, 0.3), (1e-2, 0.0), (5e-3, 0.3), (5e-3, 0.0)]


# -- a kill ---------------------------------------------------------------------------------------------------------
def main(out: Path) -> None:
    """What each process runs; the dropout makes every step draw random numbers."""
    train(task({"medusa": MEDUSA, "peeking": PEEKING}), LOOP, out)


@pytest.mark.slow  # the same guarantee is tested on a cheaper task among the fast ones
@pytest.mark.usefixtures("one_thread")
def test_a_killed_training_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    code = f"from pathlib import Path; from {__name__} import main; main(Path({str(cut)!r}))"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    logged = kill_after_a_checkpoint(process, cut)
    assert process.returncode == -signal.SIGKILL
    saved = json.loads((cut / "last" / "state.json").read_text())["step"]
    assert 0 < saved < LOOP.steps
    main(cut)
    main(whole)
    assert 8 <= logged < len(curve(whole))
    assert curve(cut) == curve(whole)
    names = sorted(path.name for path in (whole / "last").glob("*.safetensors"))
    assert names == ["heads.optimizer.safetensors", "medusa.safetensors", "peeking.safetensors"]
    for name in names:
        ours, theirs = load_file(cut / "last" / name), load_file(whole / "last" / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


# -- a trunk that learns too ----------------------------------------------------------------------------------------
class Adapted(nn.Module):
    """A linear layer and its low-rank change, which starts at zero."""

    def __init__(self, base: nn.Linear, rank: int, alpha: int) -> None:
        super().__init__()
        self.base, self.scale = base, alpha / rank
        self.a = nn.Parameter(0.1 * torch.randn(rank, base.in_features))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * (x @ self.a.T @ self.b.T)


class AdaptedModel(nn.Module):
    """The part of a ``peft`` model that is used: it changes the model in place and can be merged."""

    def __init__(self, model: Any, config: Any) -> None:
        super().__init__()
        assert config.target_modules == "all-linear"
        self.model = model.requires_grad_(False)
        for layer in model.model.layers:
            attention = layer.self_attn
            attention.q_proj = Adapted(attention.q_proj, config.r, config.lora_alpha)

    def merge_and_unload(self) -> Any:
        for layer in self.model.model.layers:
            adapted = layer.self_attn.q_proj
            adapted.base.weight.data += adapted.scale * adapted.b @ adapted.a
            layer.self_attn.q_proj = adapted.base
        return self.model


@pytest.fixture
def adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small stand-in for ``peft``."""
    module = types.ModuleType("peft")
    module.LoraConfig = types.SimpleNamespace  # type: ignore[attr-defined]
    module.get_peft_model = AdaptedModel  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "peft", module)


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(plugins.MissingExtra, match=r"peft.* is not installed.*speech-mtp\[train\]"):
        task({"medusa": MEDUSA}, lora=LoRAConfig())


@pytest.mark.usefixtures("adapters")
def test_the_joint_stage_adds_up_the_gradients_of_all_terms() -> None:
    learner = task({"medusa": MEDUSA}, lora=LoRAConfig(rank=4, heads_weight=0.3))
    assert learner.adapters is not None
    trunk = {name: p.clone() for name, p in learner.lm.model.named_parameters() if not p.requires_grad}
    with torch.no_grad():
        for weight in learner.adapters.weights:
            weight.normal_(0, 0.1)
    positions = learner.train_data.batch(0)
    sums = learner.backward(positions)
    ours = [p.grad.clone() for module in learner.modules.values() for p in module.parameters()]
    for module in learner.modules.values():
        module.zero_grad()
    with learner.states(positions, grad=True) as (out, moved):
        total = torch.stack([loss * weight for loss, weight in learner.terms(out, moved, sums)]).sum()
    total.backward()
    theirs = [p.grad for module in learner.modules.values() for p in module.parameters()]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert len(learner.adapters.state_dict()) == 6
    parts = [sums.terms["next"], *(0.3 * 0.8**k * sums.terms[f"medusa/{k + 2}"] for k in range(3))]
    assert float(sums.terms["loss"]) == pytest.approx(float(torch.stack(parts).sum()))
    learner.step(1, 1e-2)
    assert all(torch.equal(p, trunk[name]) for name, p in learner.lm.model.named_parameters() if name in trunk)


@pytest.mark.usefixtures("adapters")
def test_the_joint_stage_resumes_and_its_export_is_a_trunk_of_its_own(tmp_path: Path) -> None:
    def learner() -> TextMTPTask:
        return task({"medusa": MEDUSA}, lora=LoRAConfig(rank=4, rate_scale=1.0))

    loop = LoopConfig(steps=12, learning_rate=5e-3, warmup=1, log_every=1)
    before = learner().evaluate()
    whole = learner()
    after = train(whole, loop, tmp_path / "whole")
    assert after["next"] < before["next"]
    for _ in range(12):
        train(learner(), LoopConfig(**{**loop.__dict__, "max_time_s": 0.0}), tmp_path / "bits")
    steps = [[line["loss"] for line in curve(tmp_path / name) if "loss" in line] for name in ("whole", "bits")]
    assert steps[0] == steps[1]
    whole.export(tmp_path / "export")
    fingerprint = fingerprint_of(tmp_path / "export" / "backbone")
    merged = tiny_text_lm(fingerprint=fingerprint)
    merged.model.load_state_dict(load_file(tmp_path / "export" / "backbone" / "model.safetensors"))
    head = hub.load_head(tmp_path / "export" / "medusa", merged)
    positions = whole.dev_data.batch(0)
    with torch.no_grad(), whole.states(positions, grad=False) as (out, _):
        tokens, lengths = positions.tokens[..., 0], (positions.segment > 0).sum(1)
        valid = positions.segment > 0
        torch.testing.assert_close(merged(tokens, lengths).top[valid], out.top[valid], rtol=1e-4, atol=1e-4)
    assert torch.equal(
        head.state_dict()["blocks.0.0.linear.weight"], whole.heads["medusa"].state_dict()["blocks.0.0.linear.weight"]
    )
    with pytest.raises(ValueError, match="another backbone"):
        hub.load_head(tmp_path / "export" / "medusa", tiny_text_lm())


# -- stages --------------------------------------------------------------------------------------------------------
def test_the_stages_end_in_heads_that_load(tmp_path: Path, backbone: dict[str, Any]) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"ask": "hello"}\n{"ask": "the dog"}\n')
    common = {"backbone": backbone, "device": "cpu"}
    drawn = {"batch": 8, "max_new_tokens": 12}
    answers = {
        "kind": "answers",
        "out": tmp_path / "answers",
        "prompts": [tmp_path / "prompts.jsonl"],
        "field": "ask",
        "invent": {**drawn, "prompts": 10},
        "answer": drawn,
    }
    found = run(TrainConfig.model_validate({"run": {**answers, **common}}))
    assert (found["new"], found["prompts"]) == (found["prompts"], found["prompts"])
    assert run(TrainConfig.model_validate({"run": {**answers, **common}}))["new"] == 0
    stage = {
        "kind": "text_mtp",
        "out": tmp_path / "heads",
        "answers": [found["out"]],
        "heads": {"a": {"head": {"name": "medusa", "draft_vocab": 50}}, "b": {"head": {"name": "medusa"}}},
        "task": {"data": {"batch": 4, "length": 64, "dev_every": 4}},
        "loop": {"steps": 3, "learning_rate": 1e-3},
        **common,
    }
    scores = run(TrainConfig.model_validate({"run": stage}))
    assert {"a/2", "b/tokens_per_forward"} <= scores.keys()
    lm = TextLM.from_folder(tmp_path / "backbone")
    heads = {name: hub.load_head(tmp_path / "heads" / "export" / name, lm) for name in "ab"}
    second = {
        **stage,
        "out": tmp_path / "more",
        "start": tmp_path / "heads" / "export",
        "loop": {"steps": 1, "learning_rate": 0.0},
    }
    run(TrainConfig.model_validate({"run": second}))
    again = hub.load_head(tmp_path / "more" / "export" / "a", lm)
    for ours, theirs in zip(again.state_dict().values(), heads["a"].state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)
    with pytest.raises(ValueError, match=r"set task\.amp to true"):
        run(TrainConfig.model_validate({"run": {**stage, "dtype": "bf16"}}))
    with pytest.raises(ValueError, match="Adapters are trained with the backbone's own layers, which q4"):
        run(TrainConfig.model_validate({"run": {**stage, "dtype": "q4", "task": {**stage["task"], "lora": {}}}}))


@pytest.mark.parametrize(
    ("dtype", "loaded"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("q4", torch.float32)]
)
def test_a_trunk_is_loaded_as_its_dtype_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, loaded: torch.dtype
) -> None:
    random_llama(300, 64).save_pretrained(tmp_path / "backbone")
    tiny_tokenizer(CHAT).save_pretrained(tmp_path / "backbone")
    fingerprint = TextLM.from_folder(tmp_path / "backbone").fingerprint
    monkeypatch.setattr(hub, "resolve_backbone", lambda *_: tmp_path / "backbone")
    stage = {"kind": "answers", "backbone": {"sha256": fingerprint}, "dtype": dtype, "prompts": [tmp_path / "p"]}
    parsed = TrainConfig.model_validate({"run": {**stage, "out": tmp_path / "said"}}).run
    assert runs._text_lm(parsed).model.dtype == loaded


def test_answers_and_heads_of_a_trunk_in_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All heads learn, those that share the trunk's output layer too, from the states that decoding has."""
    monkeypatch.setenv("SPEECH_MTP_CACHE", str(tmp_path / "cache"))
    tokenizer = tiny_tokenizer(CHAT)
    model = random_llama(300, 64, num_hidden_layers=3, max_position_embeddings=512, eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(tmp_path / "backbone")
    tokenizer.save_pretrained(tmp_path / "backbone")
    lm = TextLM.from_folder(tmp_path / "backbone")
    common = {"backbone": {"sha256": lm.fingerprint, "folder": str(tmp_path / "backbone")}, "dtype": "q4"}
    monkeypatch.setattr(hub, "resolve_backbone", lambda *_: tmp_path / "backbone")
    (tmp_path / "p.jsonl").write_text("".join(f'{{"prompt": "hello {i}"}}\n' for i in range(12)))
    answers = {"kind": "answers", "out": tmp_path / "said", "prompts": [tmp_path / "p.jsonl"]}
    answers["answer"] = {"max_new_tokens": 16, "batch": 6, "at_once": 4}
    found = run(TrainConfig.model_validate({"run": {**answers, **common}}))
    assert found["new"] == 12
    states: list[str] = []
    original = TextLM.trunk_states

    def trunk_states(self: TextLM, *given: Any) -> Any:
        states.append(str(self.head_blocks))
        return original(self, *given)

    monkeypatch.setattr(TextLM, "trunk_states", trunk_states)
    heads = {"a": {"head": {"name": "eagle3", "private": False, "depth": 2}}, "b": {"head": {"name": "medusa"}}}
    stage = {
        "kind": "text_mtp",
        "out": tmp_path / "heads",
        "answers": [found["out"]],
        "heads": heads,
        "task": {"data": {"batch": 4, "length": 64, "dev_every": 4}},
        "loop": {"steps": 12, "learning_rate": 1e-2},
        **common,
    }
    scores = run(TrainConfig.model_validate({"run": stage}))
    assert set(states) == {"q8"}
    logged = [json.loads(line) for line in (tmp_path / "heads" / "log.jsonl").read_text().splitlines()]
    assert scores.keys() >= {"a/tokens_per_forward", "b/tokens_per_forward"}
    for name in heads:
        norms = [line[f"norm/{name}"] for line in logged if f"norm/{name}" in line]
        assert norms
        assert min(norms) > 0
