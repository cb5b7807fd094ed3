"""Training of draft heads on a frozen speech LM: what learns, what does not, and what it is good for in decoding."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from speech_mtp import hub, plugins
from speech_mtp.corpus.codes import CodeCorpus, CodeRow, save_codes
from speech_mtp.decoding import engine
from speech_mtp.heads.base import MTPHead
from speech_mtp.lm.group_lm import GroupLM
from speech_mtp.lm.units import UnitMaker
from speech_mtp.objectives.mtp import MTPConfig
from speech_mtp.objectives.speech_mtp import SpeechMTP
from speech_mtp.training.lm import write_units
from speech_mtp.training.loop import LoopConfig, train
from speech_mtp.training.runs import run
from speech_mtp.training.speech_mtp import SpeechMTPTask, SpeechMTPTaskConfig, build_head, runs
from speech_mtp.training.stages import TrainConfig
from speech_mtp.training.text_mtp import HeadSettings
from speech_mtp.types import LMOutput, Sampling, TextUnits
from tests.decoding.test_speech_drafts import spoken
from tests.lm.tiny import Letters, tiny_backbone
from tests.tiny import tiny_lm

MAKER = UnitMaker(tiny_backbone(), Letters())
WORDS = ["hello", "the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "good", "morning", "it", "is"]
TEXTS = [" ".join(WORDS[(i * 5 + j * (1 + i % 3)) % len(WORDS)] for j in range(4 + i % 4)) for i in range(48)]
SPECS: dict[str, dict[str, Any]] = {
    "eagle3": {"name": "eagle3", "depth": 2, "private": False, "taps": (1, -1)},
    "hydra": {"name": "hydra", "num_heads": 2},
    "medusa": {"name": "medusa", "num_heads": 2},
}
DRAWN = Sampling(temperature=0.7)


class Made:
    """Units are made when they are asked for."""

    def __contains__(self, text: str) -> bool:
        return True

    def check(self, row: CodeRow) -> None:
        return

    def units(self, texts: list[str]) -> TextUnits:
        return MAKER.make(texts)


@cache
def talker() -> GroupLM:
    """Its laws are peaked and depend on the group before, so that there is something to guess."""
    layout = {"name": "aligned", "max_advance": 2, "max_stall": 2}
    lm = tiny_lm((12, 6), scale=20.0, frames_per_group=1, layout=layout)
    with torch.no_grad():
        for weight in lm.fusion.mlp.parameters():
            weight.mul_(2.0)
    return lm


@cache
def own_speech() -> CodeCorpus:
    """What the talker itself says for the texts, one in six of them held out."""
    timbre = torch.randn(len(TEXTS), 8, generator=torch.Generator().manual_seed(1)).half()
    made = engine.start(talker(), MAKER.make(TEXTS), timbre.float(), DRAWN, seeds=torch.arange(len(TEXTS)))
    groups: list[list[list[int]]] = [[] for _ in TEXTS]
    pointers = [[0] for _ in TEXTS]
    while (step := made.advance()) is not None:
        for b in range(len(TEXTS)):
            groups[b] += step.new[b]
            pointers[b] += step.pointers[b]
    rows, start = [], 0
    for i, text in enumerate(TEXTS):
        rows.append(CodeRow(str(i), "low", text, "", "dev" if i % 6 == 5 else "train", start, len(groups[i])))
        start += len(groups[i])
    frames = [torch.tensor(row)[:, 1:].T for row in groups]
    units = [torch.tensor(row[:-1]) for row in pointers]
    return CodeCorpus(rows, torch.cat(frames, 1), torch.cat(units), timbre)


def task_for(*names: str, loss: str = "soft") -> SpeechMTPTask:
    heads = {name: build_head(SPECS[name], talker(), 0) for name in names}
    settings = {name: HeadSettings(SPECS[name], MTPConfig({loss: 1.0})) for name in names}  # type: ignore[dict-item]
    return SpeechMTPTask(talker(), heads, settings, own_speech(), Made(), SpeechMTPTaskConfig(batch=8))


LOOP = LoopConfig(steps=60, learning_rate=5e-3, warmup=5, evaluate_every=1000, save_every_s=1e9)


def kept(head: MTPHead, rule: str) -> float:
    """Drafts kept of those tried first, over held-out texts; what is said is what is said without the head."""
    texts = [row.text for row in own_speech().rows if row.split == "dev"]
    timbre = own_speech().timbre[5::6].float()
    seeds = list(range(100, 100 + len(texts)))
    units = MAKER.make(texts)
    drafting = plugins.build("decoding", rule, head=head.eval())
    plain, _ = spoken(talker(), units, timbre, DRAWN, seeds, None)
    drafted, made = spoken(talker(), units, timbre, DRAWN, seeds, drafting)
    assert drafted == plain
    return made.statistics.acceptance[0]


@pytest.mark.parametrize("loss", ["soft", "hard"])
def test_every_head_learns_and_the_trunk_does_not(tmp_path: Path, loss: str) -> None:
    task = task_for(*SPECS, loss=loss)
    trunk = {name: value.clone() for name, value in talker().state_dict().items()}
    before = task.evaluate()
    after = train(task, LOOP, tmp_path)
    for name in SPECS:
        for offset in (2, 3):
            assert after[f"{name}/{offset}"] < 0.95 * before[f"{name}/{offset}"], (name, offset)
    assert all(torch.equal(value, trunk[name]) for name, value in talker().state_dict().items())
    assert all(weight.grad is None for weight in talker().parameters())
    assert all(0 <= after[f"{name}/channels/2"] <= 3 for name in SPECS)


def test_the_gradients_of_a_head_are_its_own() -> None:
    together, alone = task_for("eagle3", "medusa"), task_for("medusa")
    batch = alone.train_data.batch(0)
    for task in (together, alone):
        task.terms(batch, learn=True)
    for a, b in zip(together.heads["medusa"].parameters(), alone.heads["medusa"].parameters(), strict=True):
        assert a.grad is not None
        torch.testing.assert_close(a.grad, b.grad)
    assert any(bool(p.grad.any()) for p in together.heads["eagle3"].parameters() if p.grad is not None)


def test_a_training_in_bits_is_the_training_in_one_go(tmp_path: Path) -> None:
    few = LoopConfig(**{**LOOP.__dict__, "steps": 4, "log_every": 1})
    whole = train(task_for("eagle3"), few, tmp_path / "whole")
    stopping = LoopConfig(**{**few.__dict__, "max_time_s": 0.0})
    for _ in range(4):
        bits = train(task_for("eagle3"), stopping, tmp_path / "bits")

    def losses(name: str) -> list[float]:
        lines = map(json.loads, (tmp_path / name / "log.jsonl").read_text().splitlines())
        return [line["loss"] for line in lines if "loss" in line]

    assert len(losses("whole")) == 4
    assert losses("bits") == losses("whole")
    assert bits == whole


@pytest.mark.parametrize("name", ["eagle3", "hydra"])
def test_more_drafts_of_a_trained_head_are_kept(tmp_path: Path, name: str) -> None:
    task = task_for(name)
    before = {rule: kept(build_head(SPECS[name], talker(), 0), rule) for rule in ("chain", "tree")}
    train(task, LOOP, tmp_path)
    assert all(kept(task.heads[name], rule) > before[rule] + 0.05 for rule in before)


# -- the objective ----------------------------------------------------------------------------------------------------
def exactly(states: dict[int, Tensor]) -> MTPHead:
    """A head that gives ``states`` by offset."""

    class Oracle(type(build_head(SPECS["medusa"], talker(), 0))):  # type: ignore[misc]
        def unroll_states(self, out: LMOutput, x: Tensor) -> Any:
            yield from states.items()

    found: MTPHead = build_head(SPECS["medusa"], talker(), 0)
    found.__class__ = Oracle
    return found


def test_a_head_that_knows_the_trunks_states_has_nothing_to_learn() -> None:
    """The state at t for offset k is compared with the trunk's at t + k - 1."""
    task = task_for("medusa")
    out, positions = task.read(task.train_data.batch(1))
    ahead = {k: torch.cat([out.top[:, k - 1 :], torch.zeros_like(out.top[:, : k - 1])], 1) for k in (2, 3)}
    steps = list(SpeechMTP(exactly(ahead), talker(), MTPConfig({"soft": 1.0}), task.taps).steps(out, positions))
    assert [step.offset for step in steps] == [2, 3]
    assert all(float(step.loss) == pytest.approx(0, abs=1e-6) for step in steps)
    lengths = (positions.labels[..., 0] >= 0).sum(1)  # type: ignore[index]
    assert [len(step.right) for step in steps] == [int((lengths - k).clamp(min=0).sum()) for k in (1, 2)]
    late = list(SpeechMTP(exactly({2: out.top}), talker(), MTPConfig({"soft": 1.0}), task.taps).steps(out, positions))
    assert float(late[0].loss) > 0.1


def test_hard_targets_are_the_groups_ahead() -> None:
    task = task_for("medusa")
    out, positions = task.read(task.train_data.batch(0))
    ahead = torch.cat([out.top[:, 1:], torch.zeros_like(out.top[:, :1])], 1)
    (step,) = SpeechMTP(exactly({2: ahead}), talker(), MTPConfig({"hard": 1.0}), task.taps).steps(out, positions)
    assert positions.labels is not None
    scores = talker().output.score(out.top, positions.labels)
    b, t = (positions.labels[:, 1:, 0] >= 0).nonzero(as_tuple=True)
    expected = torch.stack(
        [
            torch.nn.functional.cross_entropy(score[b, t + 1], positions.labels[b, t + 1, c])
            for c, score in enumerate(scores)
        ]
    ).mean()
    torch.testing.assert_close(step.loss, expected)


def test_runs_count_channels_that_are_right_in_a_row() -> None:
    right = torch.tensor([[True, True, False], [False, True, True], [True, True, True]])
    assert runs(right).tolist() == [2, 2, 1, 3]


@pytest.mark.parametrize(
    ("head", "objective", "words"),
    [
        ({"name": "dspark"}, MTPConfig(), "trained on text alone"),
        ({"name": "dflash", "taps": (-1,)}, MTPConfig(), "trained on text alone"),
        (SPECS["medusa"], MTPConfig({"feature": 1.0}), "hard and soft"),
        (SPECS["medusa"], MTPConfig(anchors=4), "leave anchors out"),
        ({**SPECS["medusa"], "private": True}, MTPConfig(), "without text"),
    ],
)
def test_what_speech_does_not_train_is_refused(head: dict[str, Any], objective: MTPConfig, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SpeechMTP(build_head(head, talker(), 0), talker(), objective)


# -- the stage --------------------------------------------------------------------------------------------------------
@pytest.fixture
def stage(tmp_path: Path) -> dict[str, Any]:
    hub.save_speech_lm(talker(), tmp_path / "talker")  # type: ignore[arg-type]
    save_codes(own_speech(), tmp_path / "codes")
    write_units(tmp_path / "units", [([text], MAKER.make([text])) for text in TEXTS])
    loop = {"steps": 3, "learning_rate": 1e-3, "warmup": 1, "save_every_s": 1e9}
    return {
        "kind": "speech_mtp",
        "out": tmp_path / "heads",
        "lm": str(tmp_path / "talker"),
        "codes": [tmp_path / "codes"],
        "units": tmp_path / "units",
        "heads": {"h": {"head": SPECS["hydra"], "objective": {"losses": {"soft": 1.0, "hard": 0.5}}}},
        "task": {"batch": 8},
        "loop": loop,
        "device": "cpu",
    }


def test_the_stage_writes_heads_that_draft(
    stage: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speech_mtp.training.lm.UnitStore.check", lambda *_: None)  # letters are not phonemes
    scores = run(TrainConfig.model_validate({"run": stage}))
    assert scores.keys() == {"out", "loss", "h/2", "h/3", "h/channels/2", "h/channels/3"}
    lm = hub.load_any_lm(tmp_path / "talker")
    head = hub.load_head(tmp_path / "heads" / "export" / "h", lm)
    assert "Draft head h" in (tmp_path / "heads" / "export" / "h" / "README.md").read_text()
    assert 0 <= kept(head, "chain") <= 1
    again = {**stage, "out": tmp_path / "more", "start": tmp_path / "heads" / "export"}
    run(TrainConfig.model_validate({"run": {**again, "loop": {"steps": 1, "learning_rate": 0.0}}}))
    more = hub.load_head(tmp_path / "more" / "export" / "h", lm).state_dict()
    assert all(torch.equal(value, more[name]) for name, value in head.state_dict().items())
    with torch.no_grad():
        next(lm.parameters()).add_(0.1)
    with pytest.raises(ValueError, match="trained on another backbone"):
        hub.load_head(tmp_path / "heads" / "export" / "h", lm)
    with pytest.raises(ValueError, match="units, and no backbone"):
        run(TrainConfig.model_validate({"run": {**stage, "units": None}}))
