"""The curriculum over frames of a group: which channels are learnt when, what is measured, across a stop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from speech_mtp import plugins
from speech_mtp.lm.causal_lm import CausalLM
from speech_mtp.objectives.base import Course
from speech_mtp.objectives.direct import Direct
from speech_mtp.objectives.ntp import NTP
from speech_mtp.training.lm import LMTask, UnitStore
from speech_mtp.training.loop import LoopConfig, train
from tests.tiny import tiny_lm
from tests.training.test_loop import tiny_task

LOOP = LoopConfig(steps=3, learning_rate=1e-3, warmup=0, log_every=1, evaluate_every=1, save_every_s=0.0)


def task_of(folder: Path, curriculum: Any, steps: int | None = 3) -> LMTask:
    plain = tiny_task(folder, noise=0.0, timbre_noise=0.0)
    torch.manual_seed(0)
    lm = tiny_lm()
    objective = plugins.build("objectives", {"name": "frames", "curriculum": curriculum})
    return LMTask(
        lm, plain.train_data.corpus, UnitStore(folder), plain.config, torch.device("cpu"), None, objective, steps
    )


def learnt_frames(task: LMTask) -> list[bool]:
    """Of each frame of a group, whether its output layers have a gradient at this step."""
    task.lm.zero_grad()
    terms = task.terms(task.train_data.batch(0))
    torch.stack(list(terms.values())).sum().backward()
    streams = len(task.lm.config.codebook_sizes)
    layers: Any = task.lm.output
    last: list[Tensor | None] = [layer.weight.grad for layer in layers.down]
    assert last[0] is not None
    found = [grad is not None and bool(grad.abs().sum() > 0) for grad in last[1:]]
    frames = [found[i : i + streams] for i in range(0, len(found), streams)]
    assert all(len(set(frame)) == 1 for frame in frames)
    return [frame[0] for frame in frames]


@pytest.mark.parametrize(("name", "first"), [("forward", True), ("reverse", False)])
def test_frames_join_or_leave_one_after_another(tmp_path: Path, name: str, first: bool) -> None:
    task = task_of(tmp_path, name, steps=100)
    group = task.lm.layout.frames_per_group
    assert group > 1
    counts = []
    for number in (0, 99):
        task.objective.at_step(number)
        learnt = learnt_frames(task)
        counts.append(sum(learnt))
        assert learnt == [True] * counts[-1] + [False] * (group - counts[-1])
    assert counts == ([1, group] if first else [group, 1])


def test_all_frames_are_what_the_next_group_is(tmp_path: Path) -> None:
    task = task_of(tmp_path, [{"k": tiny_lm().layout.frames_per_group}])
    batch = task.train_data.batch(0)
    task.lm.eval()
    found, plain = task.terms(batch), task.terms(batch, objective=NTP())
    assert found.keys() == plain.keys()
    assert all(torch.allclose(found[name], plain[name]) for name in plain)


def test_weights_of_a_phase_weigh_frames(tmp_path: Path) -> None:
    group = tiny_lm().layout.frames_per_group
    single = [[0.0] * at + [1.0] + [0.0] * (group - 1 - at) for at in range(group)]
    parts = []
    for weights in [*single, [float(1 + at) for at in range(group)]]:
        task = task_of(tmp_path, [{"k": group, "weights": weights}])
        task.lm.eval()
        parts.append(task.terms(task.train_data.batch(0))["stream0"])
    assert len({float(part) for part in parts[:-1]}) == group
    first = task_of(tmp_path, [{"k": 1}])
    first.lm.eval()
    assert torch.equal(parts[0], first.terms(first.train_data.batch(0))["stream0"])
    expected = sum((1 + at) * part for at, part in enumerate(parts[:-1])) / sum(range(1, group + 1))
    assert torch.allclose(parts[-1], torch.as_tensor(expected))


def test_what_is_held_out_is_measured_by_all_frames_and_a_stop_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "units").mkdir()
    spec = {"name": "forward", "plateau": 1, "gain": 100.0}  # no loss falls so: a phase lasts two measurements
    train(task_of(tmp_path / "units", spec), LOOP, tmp_path / "whole")
    for _ in range(3):
        last = task_of(tmp_path / "units", spec)
        train(last, replace(LOOP, max_time_s=0.0), tmp_path / "cut")
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    clock = ("eta_s", "cpu_s", "tokens_per_s")
    curves = [[{k: v for k, v in json.loads(line).items() if k not in clock} for line in log] for log in logs]
    assert curves[0] == curves[1]
    last.lm.eval()
    own = {name: float(value) for name, value in last.terms(last.dev_data.batch(0), objective=NTP()).items()}
    measured = [line for line in curves[0] if "dev/control" in line][-1]
    assert len(last.dev_data) == 1
    assert measured["dev/stream0"] == pytest.approx(own["stream0"], rel=1e-5)
    assert last.objective.schedule is not None
    assert last.objective.schedule.phase.k == 2


def test_a_phase_of_few_frames_is_measured_by_all(tmp_path: Path) -> None:
    task = task_of(tmp_path, [{"k": 1}])
    assert len(task.dev_data) == 1
    found = task.evaluate()
    with torch.no_grad():
        own, plain = (task.terms(task.dev_data.batch(0), objective=one) for one in (None, NTP()))
    assert found["stream0"] == pytest.approx(float(plain["stream0"]), rel=1e-5)
    assert abs(float(own["stream0"]) - found["stream0"]) > 1e-4


def test_a_step_is_made_at_its_place_in_the_curriculum(tmp_path: Path) -> None:
    """What the phase leaves out is not averaged over processes either, and the main one's loss ends a plateau."""
    task = task_of(tmp_path, "forward", steps=100)
    averaged: list[int] = []
    told: list[float] = []
    task.workers.average_gradients = lambda parameters: averaged.append(len(parameters))  # type: ignore[method-assign]
    task.workers.of_main = lambda loss: told.append(loss) or 1.0  # type: ignore[method-assign, func-returns-value]
    observed: list[tuple[int, float]] = []
    task.objective.observe = lambda *found: observed.append(found)  # type: ignore[method-assign]
    for number in (0, 99):
        task.step(number, 1e-3)
        task.evaluate()
    assert averaged[0] < averaged[1] == len(list(task.lm.parameters()))
    assert len(told) == 2
    assert observed == [(1, 1.0), (100, 1.0)]


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="k 99; it must be between 1 and"):
        task_of(tmp_path, [{"k": 99}])
    with pytest.raises(ValueError, match="'frames' is for speech"):
        plugins.build("objectives", "frames").bind(CausalLM.tiny(), Course(8, 1))
    lm = tiny_lm()
    with pytest.raises(ValueError, match="Registers is for trunks of text"):
        plugins.build("objectives", "registers").bind_speech(lm, Course(5, 1))
    with pytest.raises(ValueError, match="use 'ntp'"):
        Direct().bind_speech(lm, Course(5, 1))
