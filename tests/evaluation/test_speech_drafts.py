"""Draft heads of speech: agreement is what decoding keeps, and a head that knows the future is always right."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from speech_mtp import hub
from speech_mtp.evaluation.speech_drafts import Told, agreement, cost, drafting, shares, speech_drafts, tell
from speech_mtp.heads.base import MTPHead
from speech_mtp.types import LMOutput, Sampling
from tests.cli import running
from tests.decoding.test_speech_drafts import TEXTS, TIMBRE, head_for, model
from tests.tiny import tiny_model

SAMPLING = Sampling(temperature=0.9, repeat_window=3, repeat_penalty=4.0, stream_temperatures=(0.7, 1.0, 1.6))


@cache
def told(kind: str, number: int = 0) -> Told:
    """Of some length: a direct form ends by chance."""
    lm, make = model(kind)
    for seed in range(4, 100):
        sampling = replace(SAMPLING, seed=seed)
        found = tell(lm, make(TEXTS[number : number + 1]), TIMBRE[number : number + 1], sampling)
        if found.tokens.shape[1] > 8:
            break
    return found


class Knowing:
    """Gives the trunk's own states of the positions ahead."""

    def __init__(self, head: MTPHead) -> None:
        self.taps, self.offsets = head.taps, head.offsets

    def unroll_states(self, out: LMOutput, x: Any) -> Any:
        for offset in self.offsets:
            yield offset, torch.cat([out.top[:, offset - 1 :], out.top[:, : offset - 1]], 1)


@pytest.mark.parametrize("kind", ["aligned", "direct"])
def test_the_trunk_agrees_with_itself(kind: str) -> None:
    lm, _ = model(kind)
    groups = told(kind).tokens.shape[1]
    found = agreement(lm, Knowing(head_for(lm, "medusa")), told(kind))  # type: ignore[arg-type]
    assert groups > 3
    for depth in (1, 2, 3):
        assert found[depth].tolist() == [max(0, groups - depth)] * 4


@pytest.mark.parametrize("kind", ["aligned", "direct"])
@pytest.mark.parametrize("name", ["eagle3", "hydra", "medusa"])
def test_agreement_is_what_a_chain_keeps(kind: str, name: str) -> None:
    """With drafts of one group, a chain tries some of the positions that agreement counts, and finds what it finds."""
    lm, _ = model(kind)
    head = head_for(lm, name)
    found = agreement(lm, head, told(kind))[1].tolist()
    assert found[:-1] == sorted(found[:-1], reverse=True)
    report = drafting(lm, ["chain", {"name": "chain", "depth": 1}], head, [told(kind)])
    one = report["chain(depth=1)"]
    assert one["identical"] == report["chain"]["identical"] == 1
    assert one["groups"] == told(kind).tokens.shape[1]
    assert one["kept"][0] <= found[-2]
    assert (found[-2] == 0) == (one["kept"][0] == 0)


def test_a_draft_that_is_not_the_code_is_told_from_one_that_is() -> None:
    lm, _ = model("aligned")
    mine = told("aligned")
    wrong = mine.tokens.clone()
    wrong[:, 1:, 2] = 1 - wrong[:, 1:, 2].clamp(max=1)  # the last channel of every group but the first
    lied = Told(mine.units, mine.timbre, mine.sampling, wrong, mine.place, mine.rows)
    report = drafting(lm, ["chain"], head_for(lm, "medusa"), [lied])
    assert report["chain"]["identical"] == 0


def test_shares_are_of_the_positions_that_there_are() -> None:
    counts = {1: torch.tensor([4, 2, 1, 8]), 2: torch.tensor([0, 0, 0, 0])}
    assert shares(counts) == {
        "1": {"positions": 8, "right": [0.5, 0.25, 0.125], "channels_in_a_row": 0.875},
        "2": {"positions": 0, "right": [0.0, 0.0, 0.0], "channels_in_a_row": 0.0},
    }


def test_the_parts_of_a_step_are_timed() -> None:
    lm, _ = model("aligned")
    found = cost(lm, head_for(lm, "hydra"), told("aligned"), rounds=6)
    assert found.keys() == {"head", "guess", "forward_1", "choice_1", "forward_4", "choice_4", "read"}
    assert all(value > 0 for value in found.values())


def test_a_rule_that_does_not_fit_a_head_is_left_out() -> None:
    lm, _ = model("aligned")
    heads = {"leap": head_for(lm, "leap"), "hydra": head_for(lm, "hydra")}
    report = speech_drafts(lm, {0.9: [told("aligned")]}, heads, ["leap", "tree"])
    assert list(report["leap"]["rules"]["0.9"]) == ["leap"]
    assert list(report["hydra"]["rules"]["0.9"]) == ["tree"]
    assert sorted(report["leap"]["agreement"]["0.9"]) == ["2", "4", "6"]


def test_the_command_writes_it_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    speaking = tiny_model()
    monkeypatch.setattr(hub, "load", lambda *_, **__: speaking)
    spec = {"name": "hydra", "num_heads": 2}
    hub.save_head(head_for(speaking.lm, **spec), tmp_path / "head", spec, speaking.lm.fingerprint)  # type: ignore[arg-type]
    (tmp_path / "lines.txt").write_text("good morning.\nhello there.\nit is.\n")
    arguments = ["--heads", str(tmp_path / "head"), "--sentences", str(tmp_path / "lines.txt"), "--limit", "2"]
    out = tmp_path / "report.json"
    assert running.run(monkeypatch, "eval", "drafts", *arguments, "--temperatures", "0.3", "--json", str(out)) == 0
    report = json.loads(out.read_text())
    assert report["sentences"] == 2
    (mine,) = report["heads"].values()
    assert {rule: found["identical"] for rule, found in mine["rules"]["0.3"].items()} == {"chain": 2, "tree": 2}
    assert len(mine["agreement"]["0.3"]["1"]["right"]) == speaking.lm.layout.num_channels
