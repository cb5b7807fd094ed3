"""The loop goes on where it stopped, on the same curve; the speech LM's task takes real steps."""

from __future__ import annotations

import itertools
import json
import re
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from speech_mtp.corpus.codes import CodeCorpus, CodeRow
from speech_mtp.lm.embeddings import Window
from speech_mtp.lm.talker import TalkerBlock
from speech_mtp.lm.units import UnitMaker
from speech_mtp.text.phonemes import render
from speech_mtp.training import checkpoint
from speech_mtp.training.base import Task, begin_step
from speech_mtp.training.lm import LMTask, LMTaskConfig, UnitStore, write_units
from speech_mtp.training.loop import MAY_CHANGE, LoopConfig, learning_rate, train
from tests.lm.tiny import Letters, tiny_backbone
from tests.tiny import tiny_lm


class Killed(Exception):
    """What a kill looks like from inside."""


class Line(Task):
    """Fits a line to noise that is drawn in each step; dies before step ``die_at``."""

    def __init__(self, die_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.modules = {"line": nn.Linear(3, 1)}
        self.optimizers = {"line": torch.optim.AdamW(self.modules["line"].parameters())}
        self.die_at = die_at

    def step(self, number: int, learning_rate: float) -> dict[str, float]:
        if number == self.die_at:
            raise Killed
        x = torch.randn(8, 3)
        loss = (self.modules["line"](x)[:, 0] - x.sum(1) - number / 10).square().mean()
        optimizer = self.optimizers["line"]
        optimizer.param_groups[0]["lr"] = learning_rate
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": float(loss.detach())}

    def evaluate(self) -> dict[str, float]:
        return {"weight": float(self.modules["line"].weight.detach().sum())}

    def export(self, folder: Path) -> None:
        raise AssertionError("not called by the loop")


CONFIG = LoopConfig(steps=12, learning_rate=0.05, warmup=3, log_every=1, evaluate_every=5, save_every_s=0.0)


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


@pytest.mark.parametrize("die_at", [1, 5, 11])
def test_a_killed_run_goes_on_on_the_same_curve(tmp_path: Path, die_at: int) -> None:
    scores = train(Line(), CONFIG, tmp_path / "whole")
    with pytest.raises(Killed):
        train(Line(die_at), CONFIG, tmp_path / "cut")
    assert train(Line(), CONFIG, tmp_path / "cut") == scores
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert [step for step, _ in losses(tmp_path / "cut")] == list(range(12))


def test_steps_after_the_last_checkpoint_are_done_again_and_logged_once(tmp_path: Path) -> None:
    rare = LoopConfig(**{**CONFIG.__dict__, "save_every_s": 1e9})
    train(Line(), CONFIG, tmp_path / "whole")
    with pytest.raises(Killed):
        train(Line(7), rare, tmp_path / "cut")  # never saved: starts afresh
    train(Line(), rare, tmp_path / "cut")
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")


def test_a_kill_between_two_renames_loses_nothing(tmp_path: Path) -> None:
    task = Line()
    checkpoint.save(task, tmp_path, 3, {})
    (tmp_path / "last").rename(tmp_path / "last.old")
    (tmp_path / "last.tmp").mkdir()
    found = checkpoint.load(Line(), tmp_path)
    assert found is not None
    assert found["step"] == 3
    checkpoint.save(task, tmp_path, 4, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last"]


def test_a_damaged_checkpoint_is_refused_in_one_sentence(tmp_path: Path) -> None:
    checkpoint.save(Line(), tmp_path, 3, {})
    path = tmp_path / "last" / "line.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match="cannot be resumed") as error:
        checkpoint.load(Line(), tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", [{"learning_rate": 0.1}, {"warmup": 9}, {"final_fraction": 0.5}, {"seed": 1}])
def test_a_run_is_not_resumed_with_another_curve(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(Killed):
        train(Line(5), CONFIG, tmp_path)
    before = losses(tmp_path)
    name, value = next(iter(change.items()))
    with pytest.raises(ValueError, match=rf"begun with loop\.{name} .*, not {value};") as error:
        train(Line(), replace(CONFIG, **change), tmp_path)
    assert "\n" not in str(error.value)
    assert losses(tmp_path) == before


def test_a_run_may_be_made_longer_and_watched_otherwise(tmp_path: Path) -> None:
    train(Line(), CONFIG, tmp_path)
    longer = replace(CONFIG, steps=14, log_every=2, evaluate_every=7, save_every_s=5.0, max_time_s=60.0)
    train(Line(), longer, tmp_path)
    assert [step for step, _ in losses(tmp_path)] == [*range(13), 13]


def test_every_setting_of_the_loop_either_may_change_or_is_compared() -> None:
    assert set(CONFIG.__dict__) - MAY_CHANGE == {"learning_rate", "warmup", "final_fraction", "seed"}


def test_time_that_is_up_saves_and_the_next_call_goes_on(tmp_path: Path) -> None:
    train(Line(), CONFIG, tmp_path / "whole")
    hasty = LoopConfig(**{**CONFIG.__dict__, "max_time_s": 0.0, "save_every_s": 1e9})
    for _ in range(12):
        train(Line(), hasty, tmp_path / "bits")
    assert losses(tmp_path / "bits") == losses(tmp_path / "whole")


def test_processor_time_counts_on_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()  # a second passes whenever somebody looks
    clocks = SimpleNamespace(monotonic=time.monotonic, process_time=lambda: float(next(clock)))
    monkeypatch.setattr("speech_mtp.training.loop.time", clocks)
    config = replace(CONFIG, steps=3, log_every=1, max_time_s=0.0, save_every_s=0.0)
    for _ in range(3):
        train(Line(), config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    spent = [line["cpu_s"] for line in lines if "cpu_s" in line]
    assert len(spent) == 3
    assert spent == sorted(set(spent))
    assert spent[0] > 0


def test_a_budget_of_seconds_ends_the_run_with_its_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count()  # a second passes whenever somebody looks
    clocks = SimpleNamespace(monotonic=lambda: float(next(clock)), process_time=float)
    monkeypatch.setattr("speech_mtp.training.loop.time", clocks)
    config = replace(CONFIG, steps=1000, budget_s=20.0, final_fraction=0.0)
    scores = train(Line(), config, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    rates = [line["rate"] for line in lines if "rate" in line]
    assert 5 < len(rates) < 30
    assert rates[-1] < 0.02 * max(rates)
    assert scores
    assert train(Line(), config, tmp_path) == {}, "the budget was spent"
    assert train(Line(), replace(config, budget_s=30.0), tmp_path), "and may be raised"


def test_the_rate_warms_up_and_falls() -> None:
    rates = [learning_rate(CONFIG, step) for step in range(13)]
    assert rates[0] == pytest.approx(0.05 / 3)
    assert max(rates) == pytest.approx(rates[2])
    assert rates[12] == pytest.approx(0.05 * CONFIG.final_fraction)
    assert all(a > b for a, b in itertools.pairwise(rates[2:]))


def test_the_seed_decides_the_curve(tmp_path: Path) -> None:
    train(Line(), CONFIG, tmp_path / "one")
    train(Line(), replace(CONFIG, seed=1), tmp_path / "other")
    assert losses(tmp_path / "one") != losses(tmp_path / "other")


# -- the speech LM ----------------------------------------------------------------------------------------------------
TEXTS = ["hello there.", "the quick brown fox jumps.", "good morning", "it is a lazy dog."]
DEV_TEXT = "a dog jumps over the fox."


def tiny_task(folder: Path, lm: dict[str, Any] | None = None, **settings: object) -> LMTask:
    maker = UnitMaker(tiny_backbone(), Letters())
    rest = [*TEXTS[2:], DEV_TEXT]
    write_units(folder, [(TEXTS[:2], maker.make(TEXTS[:2])), (rest, maker.make(rest))])
    store = UnitStore(folder)
    rng = torch.Generator().manual_seed(0)
    rows, frames, unit = [], [], []
    for i, text in enumerate([*TEXTS, DEV_TEXT]):
        n = 3 * int(store.units([text]).lengths[0])
        start = sum(f.shape[1] for f in frames)
        phonemes, split = render(Letters().phonemize(text)), "dev" if i == 4 else "train"
        rows.append(CodeRow(f"{i}", "low", text, phonemes, split, start, n))
        frames.append(torch.stack([torch.randint(0, size, (n,), generator=rng) for size in (1000, 200)]))
        unit.append(torch.arange(n) // 3)
    timbre = torch.randn(5, 8, generator=rng)
    corpus = CodeCorpus(rows, torch.cat(frames, 1), torch.cat(unit), timbre)
    config = LMTaskConfig(**{"batch": 2, **settings})  # type: ignore[arg-type]
    return LMTask(tiny_lm(**lm or {}), corpus, store, config, torch.device("cpu"))


def test_stored_units_are_those_that_were_made(tmp_path: Path) -> None:
    maker = UnitMaker(tiny_backbone(), Letters())
    made = maker.make(TEXTS)
    write_units(tmp_path, [(TEXTS, made)])
    read = UnitStore(tmp_path).units(TEXTS)
    for name in ("phoneme", "stress", "word_start", "token", "lengths"):
        assert torch.equal(getattr(read, name), getattr(made, name)), name
    tokens = int(read.token.max()) + 1
    torch.testing.assert_close(read.hidden[:, :tokens], made.hidden[:, :tokens], atol=2e-3, rtol=2e-3)


def test_stored_units_that_do_not_fit_the_codes_are_refused(tmp_path: Path) -> None:
    task = tiny_task(tmp_path)
    rows = task.train_data.corpus.rows
    rows[1] = replace(rows[1], phonemes=rows[1].phonemes.replace("k", "t"))
    said = (
        f"The units of 'the quick brown fox jumps.' in {tmp_path} do not fit the codes of 1: phoneme 5 is k in the "
        f"units and t in the codes; remove {tmp_path} and make units with the corpus's G2P."
    )
    with pytest.raises(ValueError, match=re.escape(said)):
        LMTask(tiny_lm(), task.train_data.corpus, UnitStore(tmp_path), task.config, torch.device("cpu"))
    rows[1] = replace(rows[1], phonemes=render(Letters().phonemize(rows[1].text))[:-1])
    with pytest.raises(ValueError, match=r"is \. in the units and nothing in the codes"):
        LMTask(tiny_lm(), task.train_data.corpus, UnitStore(tmp_path), task.config, torch.device("cpu"))


def test_a_dev_sentence_is_not_trained_on_in_another_voice(tmp_path: Path) -> None:
    corpus = tiny_task(tmp_path).train_data.corpus
    corpus.rows[0] = replace(corpus.rows[4], split="train", voice="high")
    task = LMTask(tiny_lm(), corpus, UnitStore(tmp_path), LMTaskConfig(batch=2), torch.device("cpu"))
    assert sorted(task.train_data.rows.tolist()) == [1, 2, 3]


def test_a_talker_learns_four_sentences_by_heart(tmp_path: Path) -> None:
    task = tiny_task(tmp_path, noise=0.0, timbre_noise=0.0, amp=False)
    before = task.evaluate()
    for number in range(60):
        scalars = task.step(number, 3e-3)
    assert scalars["control"] < 0.6 * before["control"]
    assert scalars["stream0"] < before["stream0"] - 1
    assert {"control", "stream0", "stream1", "blank/control"} <= before.keys()


def test_the_batches_of_a_pass_are_every_utterance_once_and_repeatable(tmp_path: Path) -> None:
    task = tiny_task(tmp_path)
    shapes = [task.train_data.batch(number)[0].lengths.tolist() for number in range(2)]
    assert sorted(shapes[0] + shapes[1]) == sorted(row.frames for row in task.train_data.corpus.rows[:4])
    assert shapes == [tiny_task(tmp_path).train_data.batch(number)[0].lengths.tolist() for number in range(2)]


def test_noise_replaces_codes_and_never_the_pointer_steps(tmp_path: Path) -> None:
    task = tiny_task(tmp_path)
    codes, unit, units = task.train_data.batch(0)
    positions = task.lm.layout.pack(codes, unit, units.lengths)
    torch.manual_seed(0)
    noisy = task.corrupt(positions, 0.5)
    assert torch.equal(noisy[..., 0], positions.tokens[..., 0])
    share = (noisy[..., 1] != positions.tokens[..., 1]).float().mean()
    assert 0.2 < share < 0.8


def test_the_seed_and_the_pass_decide_the_order(tmp_path: Path) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        data = tiny_task(tmp_path, batch=1, seed=seed).train_data
        return [int(data.batch(number)[0].lengths[0]) for number in range(4 * epoch, 4 * epoch + 4)]

    orders = [[order(seed, epoch) for epoch in range(4)] for seed in (0, 1)]
    assert len({tuple(found) for found in orders[0]}) > 1
    assert orders[0] != orders[1]


def test_the_loss_is_the_weighted_sum_and_gradients_are_clipped(tmp_path: Path) -> None:
    weights = {"control": 200.0, "stream0": 50.0, "stream1": 25.0}
    task = tiny_task(tmp_path, weights=weights, grad_clip=0.5, weight_decay=0.07)
    norms: list[float] = []

    def note(*_: Any) -> None:
        norms.append(float(torch.stack([p.grad.norm() for p in task.lm.parameters() if p.grad is not None]).norm()))

    optimizer = task.optimizers["lm"]
    optimizer.register_step_pre_hook(note)
    scores = task.step(0, 1e-3)
    assert scores["loss"] == pytest.approx(sum(weight * scores[name] for name, weight in weights.items()), rel=1e-4)
    assert norms == pytest.approx([0.5], rel=1e-3)
    assert scores["norm"] > 0.5
    decays = {p.ndim > 1: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays == {True: 0.07, False: 0.0}


def test_every_parameter_learns_from_one_step(tmp_path: Path) -> None:
    task = tiny_task(tmp_path, batch=4, noise=0.0)
    task.step(0, 1e-3)
    still = [name for name, p in task.lm.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_noise_is_for_training_alone(tmp_path: Path) -> None:
    task = tiny_task(tmp_path, lm={"dropout": 0.5, "blank_states": 0.5}, noise=1.0, timbre_noise=3.0, amp=False)
    task.lm.train()
    assert task.evaluate() == task.evaluate()
    task.lm.eval()
    batch, found = task.train_data.batch(0), []
    for noise, corrupt in ((0.0, task.corrupt), (1.0, task.corrupt), (1.0, lambda positions, share: positions.tokens)):
        torch.manual_seed(0)
        task.corrupt = corrupt  # type: ignore[method-assign]
        with torch.no_grad():
            found.append(float(task.terms(batch, noise=noise)["stream0"]))
    assert len(set(found)) == 3, "of codes and timbre, of timbre alone, none"


@pytest.mark.parametrize("amp", [False, True])
def test_mixed_precision_is_as_asked_for(tmp_path: Path, amp: bool) -> None:
    task, seen = tiny_task(tmp_path, amp=amp), []
    task.lm.register_forward_pre_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    task.step(0, 1e-3)
    assert seen == [amp]


def test_states_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    scores, blind = (
        tiny_task(tmp_path, amp=False).evaluate(),
        tiny_task(tmp_path, zero_hidden=True, amp=False).evaluate(),
    )
    assert scores["blank/control"] != scores["control"]
    assert blind["control"] == blind["blank/control"] == scores["blank/control"]


def test_states_are_blanked_and_dropout_drops_in_training_alone(tmp_path: Path) -> None:
    task = tiny_task(tmp_path, lm={"blank_states": 1.0}, amp=False)
    batch = task.train_data.batch(0)
    with torch.no_grad():
        for training in (True, False):
            task.lm.train(training)
            assert (task.terms(batch)["control"] == task.terms(batch, zero=True)["control"]) == training
        block = TalkerBlock(8, 2, 16, layer=0, dropout=1.0)
        x, index, mask = torch.randn(1, 3, 8), torch.arange(3)[None], torch.ones(1, 1, 3, 3, dtype=torch.bool)
        for training in (True, False):
            assert torch.equal(block.train(training)(x, index, mask, None), x) == training


def test_a_window_ends_with_the_units_of_its_row() -> None:
    torch.manual_seed(0)
    window, encoded, pointer = Window(4, 6, past=2, ahead=3), torch.randn(1, 5, 4), torch.arange(4)[None]
    with torch.no_grad():
        padded = window(encoded, torch.tensor([3]), pointer)
        torch.testing.assert_close(padded, window(encoded[:, :3], torch.tensor([3]), pointer))
        window.outside[0] += 1
        moved = (window(encoded, torch.tensor([3]), pointer) != padded).any(-1)
    assert moved.tolist() == [[True, True, False, False]]


def test_the_task_resumes_too(tmp_path: Path) -> None:
    config = LoopConfig(steps=4, learning_rate=1e-3, warmup=1, log_every=1, evaluate_every=100, save_every_s=1e9)
    whole = train(tiny_task(tmp_path / "units"), config, tmp_path / "whole")
    hasty = LoopConfig(**{**config.__dict__, "max_time_s": 0.0})
    for _ in range(4):
        train(tiny_task(tmp_path / "units"), hasty, tmp_path / "bits")
    assert losses(tmp_path / "bits") == losses(tmp_path / "whole")
    assert whole


def test_a_step_begins_with_its_rates_and_without_gradients() -> None:
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": [second], "scale": 0.5}], lr=9.0)
    (first.sum() + second.sum()).backward()
    begin_step(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05]
    assert first.grad is None
    assert second.grad is None
