"""Drafting rests while it does not pay, by a given or a measured cost, and is tried again."""

from __future__ import annotations

import pytest

from speech_mtp.decoding import text
from speech_mtp.decoding.chain import Chain
from speech_mtp.decoding.payoff import Payoff
from speech_mtp.decoding.tree import Tree
from speech_mtp.types import Sampling
from tests.decoding.walk import Walk, bound, tiny_text_lm


class Clock:
    """Seconds that pass only when told."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def decisions(payoff: Payoff, steps: int, gain: float, clock: Clock | None = None) -> str:
    """``d`` for a drafted step, which takes 3 seconds, ``p`` for a plain one, which takes 1."""
    made = ""
    for _ in range(steps):
        drafting = payoff.start()
        made += "d" if drafting else "p"
        if clock is not None:
            clock.now += 3 if drafting else 1
        payoff.finish(gain if drafting else 1.0)
    return made


def test_a_given_cost() -> None:
    assert decisions(Payoff(cost=1.5, trial=2, rest=3), 12, gain=1.4) == "ddpppddpppdd"
    assert decisions(Payoff(cost=1.5, trial=2, rest=3), 12, gain=1.6) == "d" * 12


def test_a_measured_cost_begins_with_plain_steps() -> None:
    for gain, expected in ((2.9, "ppppddpppppdd"), (3.1, "ppppddddddddd")):
        clock = Clock()
        payoff = Payoff(trial=2, rest=5, clock=clock)
        assert decisions(payoff, 13, gain, clock) == expected
        assert payoff.cost == 3


@pytest.mark.parametrize("rule", [Chain, Tree])
def test_the_text_stays_and_pauses_are_counted(rule: type[Chain | Tree]) -> None:
    lm, sampling = tiny_text_lm(7, scale=0.3), Sampling(temperature=0)
    head = bound(Walk, lm)

    def answers(payoff: dict[str, float] | None) -> tuple[list[list[int]], text.Statistics]:
        run = text.start(lm, [[0, 1, 2], [3, 4]], sampling, rule(head, payoff=payoff), 60)
        while run.advance() is not None:
            pass
        return run.tokens, run.statistics

    said, always = answers(None)
    same, sometimes = answers({"cost": 99.0, "trial": 1, "rest": 4})
    assert same == said
    assert always.paused == 0
    assert 0 < sometimes.paused < sometimes.forwards
    assert sometimes.tried[0] <= sometimes.forwards - sometimes.paused
    assert sum(sometimes.kept) > 0, "the head went on reading"


def test_impossible_settings() -> None:
    with pytest.raises(ValueError, match="too short"):
        Payoff(trial=0)
    with pytest.raises(ValueError, match="cost is 0"):
        Payoff(cost=0)
