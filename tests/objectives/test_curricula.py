"""Curricula: against the published formulas, by steps, by shares, by plateaus, kept in checkpoints, refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from speech_mtp.objectives.curricula import Curriculum, Phase, Place, forward, observed, phases_of, reverse


def depths(spec: Any, k_max: int, steps: int, length: int = 512) -> list[int]:
    """k at every step of a run."""
    curriculum, found = Curriculum(spec, k_max), []
    curriculum.bind(length, steps)
    for number in range(steps):
        curriculum.at_step(number)
        found.append(curriculum.phase.k)
    return found


@pytest.mark.parametrize("k_max", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("steps", [7, 8, 12, 100, 126])
def test_forward_and_reverse_are_the_published_formulas(k_max: int, steps: int) -> None:
    # e / (E / k) as e k / E: whole numbers have no rounding.
    passed = [e * k_max // steps for e in range(steps)]
    assert depths("forward", k_max, steps) == [min(k_max, n + 1) for n in passed]
    assert depths("reverse", k_max, steps) == [max(1, k_max - n) for n in passed]


def test_phases_by_steps_and_shares() -> None:
    spec = [{"k": 1, "steps": 3}, {"k": 3, "share": 0.5}, {"k": 2, "steps": 1}, {"k": 4}]
    assert depths(spec, 4, 10) == [1, 1, 1, 3, 3, 3, 3, 3, 2, 4]
    assert depths(None, 4, 3) == [4, 4, 4]


def test_a_depth_may_be_drawn_at_every_step() -> None:
    spec = [{"k": 1, "steps": 10}, {"k": 4, "drawn": True, "weights": [1.0, 0.5, 0.25, 0.125]}]
    found = depths(spec, 4, 410)
    assert found == depths(spec, 4, 410)
    assert found[:10] == [1] * 10
    assert all(70 < found[10:].count(k) < 130 for k in range(1, 5))
    curriculum = Curriculum(spec, 4)
    for number in range(10, 30):
        curriculum.at_step(number)
        assert curriculum.phase.weights == (1.0, 0.5, 0.25, 0.125)[: curriculum.phase.k]
    with pytest.raises(ValueError, match="drawn of a phase of the curriculum is 'often'"):
        phases_of([{"k": 4, "drawn": "often"}], 4)


def test_a_plateau_ends_a_phase() -> None:
    curriculum = Curriculum({"name": "forward", "plateau": 20, "gain": 0.1}, 3)
    curriculum.bind(512, None)
    #         falls      too little         20 steps old      falls       not for 20 steps   the last stays
    losses = [(10, 3.0), (20, 2.95), (30, 2.91), (40, 2.8), (50, 2.5), (60, 2.5), (70, 2.5), (200, 9.0)]
    found = []
    for number, loss in losses:
        curriculum.at_step(number)
        curriculum.observe(number, loss)
        found.append(curriculum.phase.k)
    assert found == [1, 1, 2, 2, 2, 2, 3, 3]


def test_steps_count_from_where_a_plateau_ended() -> None:
    spec = [{"k": 1, "plateau": 5}, {"k": 2, "steps": 4}, {"k": 3}]
    curriculum = Curriculum(spec, 3)
    curriculum.observe(7, 1.0)
    curriculum.observe(12, 1.0)
    assert curriculum.place == Place(1, 12, math.inf, 12)
    found = []
    for number in range(12, 18):
        curriculum.at_step(number)
        found.append(curriculum.phase.k)
    assert found == [2, 2, 2, 2, 3, 3]


def test_phases_by_steps_ignore_the_loss() -> None:
    phases = forward(3, steps=5)
    assert observed(phases, Place(), 100, 0.0) == Place()
    assert [phase.steps for phase in phases] == [5, 5, None]
    assert [phase.k for phase in reverse(3)] == [3, 2, 1]


def test_the_place_is_kept() -> None:
    curriculum, again = (Curriculum({"name": "reverse", "plateau": 5}, 4) for _ in range(2))
    for number in (3, 8, 9):
        curriculum.observe(number, 2.0)
    again.load_state_dict(curriculum.state_dict())
    assert again.place == curriculum.place == Place(1, 8, 2.0, 9)
    assert all(isinstance(value, torch.Tensor) for value in curriculum.state_dict().values())
    with pytest.raises(ValueError, match="saved in phase 2, and the curriculum has 1"):
        Curriculum(None, 4).load_state_dict(curriculum.state_dict())


def test_weights_of_a_phase() -> None:
    assert phases_of([{"k": 2, "weights": [1, 0.5]}], 4) == [Phase(2, weights=(1, 0.5))]


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("sideways", "no curriculum 'sideways'; name 'forward' or 'reverse'"),
        ({"plateau": 5}, "no curriculum None"),
        ({"name": "forward", "plateu": 5}, "no setting 'plateu'; did you mean 'plateau'"),
        ([{"k": 2, "stps": 5}, {"k": 1}], "no setting 'stps'; did you mean 'steps'"),
        ([{"steps": 5}, {"k": 1}], "has no k"),
        ([], "has no phase"),
        ([{"k": 5}], "Phase 1 of the curriculum has k 5; it must be between 1 and 4"),
        ([{"k": "two"}], "k of a phase of the curriculum is 'two', which is not a number"),
        ([{"k": 2, "weights": [1, "a"]}], "weights of a phase"),
        ([{"k": 0}], "k 0; it must be between 1 and 4"),
        ([{"k": 1}, {"k": 2}], "Phase 1 of the curriculum must have one of steps, share, plateau"),
        ([{"k": 1, "steps": 5, "share": 0.5}, {"k": 2}], "Phase 1 of the curriculum must have one of"),
        ([{"k": 1, "steps": 5}], "Phase 1 of the curriculum must have none of"),
        ([{"k": 1, "steps": 0}, {"k": 2}], "a length that is not positive"),
        ([{"k": 2, "weights": [1.0]}], "needs 2 weights"),
        ([{"k": 1, "share": 0.7}, {"k": 2, "share": 0.7}, {"k": 3}], "more than the whole run"),
    ],
)
def test_what_cannot_be_is_one_sentence(spec: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Curriculum(spec, 4)


def test_what_does_not_fit_the_run_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="k is 9, but the rows have 8 tokens"):
        Curriculum(None, 9).bind(8, 100)
    with pytest.raises(ValueError, match="a run whose length is not known"):
        Curriculum("forward", 2).bind(8, None)
