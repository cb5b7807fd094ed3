"""The measurement of barge-in: which interruptions it sees in what a page played and heard, and how long they took."""

from __future__ import annotations

from typing import Any

import pytest

from tests.demo.barge_in import interruptions

BLOCK_S = 0.01


def tapped(played: list[tuple[float, float]], heard: list[tuple[float, float]], noticed: list[float]) -> dict[str, Any]:
    """Blocks of ten seconds in which sound was played and somebody spoke from one time to another."""

    def level(at: float, spans: list[tuple[float, float]]) -> float:
        return 0.5 * any(begin <= at < end for begin, end in spans)

    times = [i * BLOCK_S for i in range(1000)]
    return {"blocks": [[at, level(at, played), level(at, heard)] for at in times], "noticed": noticed}


def test_from_the_event_and_from_the_voice_to_silence() -> None:
    found = interruptions(tapped([(2.0, 4.3), (6.0, 9.0)], [(0.5, 1.0), (3.8, 4.6)], [4.1]))
    (one,) = found
    assert one["from_event"] == pytest.approx(190, abs=15)
    assert one["from_voice"] == pytest.approx(490, abs=15)


def test_an_answer_that_goes_on_is_not_silent() -> None:
    (one,) = interruptions(tapped([(2.0, 7.0)], [(3.8, 4.6)], [4.1]))
    assert one["from_event"] > 2800


@pytest.mark.parametrize("played", [[(2.0, 4.0)], [(4.2, 6.0)], []])
def test_where_nothing_was_being_said_there_is_no_interruption(played: list[tuple[float, float]]) -> None:
    assert interruptions(tapped(played, [(3.8, 4.6)], [4.1])) == []
