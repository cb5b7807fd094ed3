"""The loss of an id in parallel digits, by hand; what it refuses; a talker that learns it and knows its groups."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from speech_mtp import hub
from speech_mtp.lm.causal_lm import CausalLM, CausalLMConfig
from speech_mtp.lm.known_groups import Known
from speech_mtp.objectives.base import Course
from speech_mtp.objectives.codes import Codes
from speech_mtp.training.lm import LMTask, UnitStore
from speech_mtp.types import LMOutput, Positions
from tests.tiny import tiny_lm
from tests.training.test_loop import tiny_task


class Uneven:
    """An output layer that is sure of 0 in channel 1, and of nothing in the others."""

    def score(self, hidden: torch.Tensor, tokens: torch.Tensor) -> list[torch.Tensor]:
        b, t = hidden.shape[:2]
        return [torch.zeros(b, t, 2), torch.tensor([math.log(3.0), 0.0]).expand(b, t, 2), torch.zeros(b, t, 4)]


class Model:
    output = Uneven()
    loss_names = ("control", "stream0", "stream1")


def test_three_groups_by_hand() -> None:
    labels = torch.tensor([[[0, 0, 3], [1, 1, 2], [-100, -100, -100]]])
    positions = Positions(labels, labels[..., 0], labels[..., 0], labels[..., 0], None, labels)
    found = dict(Codes().terms(Model(), LMOutput(torch.zeros(1, 3, 1, 5)), positions))  # type: ignore[arg-type]
    content = (math.log(4 / 3) + math.log(4)) / 2
    assert float(found["control"]) == pytest.approx(math.log(2))
    assert float(found["codes"]) == pytest.approx((content + math.log(4)) / 2)


def test_text_and_channels_in_order_are_refused() -> None:
    with pytest.raises(ValueError, match="for speech"):
        Codes().bind(CausalLM(CausalLMConfig(dim=8, num_layers=1, num_heads=1), 8), Course(8))
    with pytest.raises(ValueError, match=r"model\.output must be"):
        Codes().bind_speech(tiny_lm(), Course(2))


@pytest.fixture
def task(tmp_path: Path) -> LMTask:
    plain = tiny_task(tmp_path, noise=0.0, timbre_noise=0.0, weights={"control": 1.0, "codes": 2.0})
    lm = tiny_lm(output="known")
    return LMTask(lm, plain.train_data.corpus, UnitStore(tmp_path), plain.config, torch.device("cpu"), None, Codes(), 3)


def test_a_talker_learns_by_it_and_draws_what_the_corpus_has(task: LMTask, tmp_path: Path) -> None:
    losses = [task.step(number, 3e-3)["codes"] for number in range(12)]
    assert losses[-1] < losses[0]
    (tmp_path / "out").mkdir()
    task.export(tmp_path / "out")
    lm = hub.load_speech_lm(tmp_path / "out")
    assert isinstance(lm.output, Known)
    groups = {tuple(group) for group in task.groups().tolist()}
    assert {tuple(group) for group in lm.output.ids.tolist()} == groups


def test_the_groups_are_those_of_the_train_split(task: LMTask) -> None:
    corpus, found = task.train_data.corpus, task.groups()
    size = task.lm.layout.frames_per_group
    rows = task.train_data.rows
    assert len(found) == sum(-(-corpus.rows[i].frames // size) for i in rows)
    frames, _ = corpus.item(int(rows[0]))
    assert tuple(frames[:, :size].T.flatten().tolist()) in {tuple(g) for g in found.tolist()}
