"""What runs in the audio thread, outside of a browser: exact times, no clicks, silence at once when interrupted."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.demo.showing import NODE, STATIC

SCENES = Path(__file__).parent / "worklets.js"
pytestmark = pytest.mark.skipif(NODE is None, reason="needs Node")


@pytest.fixture(scope="module", params=[44_100, 48_000])
def rate(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def scenes(rate: int) -> dict[str, Any]:
    command = [str(NODE), str(SCENES), str(STATIC / "worklets.js"), str(rate)]
    told: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    return told


def step_of(hz: float, amplitude: float, rate: int) -> float:
    """The largest difference between two samples of a sine."""
    return 2 * 3.1416 * hz * amplitude / rate


def test_resampling_in_blocks_gives_the_whole_and_keeps_a_tone(scenes: dict[str, Any], rate: int) -> None:
    down, up = scenes["resample"]
    assert abs(down["length"] - 24_000) <= 1
    assert abs(up["length"] - rate) <= 1
    assert max(down["error"], up["error"]) < 1e-3


def test_the_microphone_sends_batches_of_30_ms(scenes: dict[str, Any]) -> None:
    heard = scenes["capture"]
    assert set(heard["lengths"]) == {720}
    assert 32 <= len(heard["lengths"]) <= 33
    assert heard["level"] == pytest.approx(0.5 / 2**0.5, rel=0.02)
    assert 16_000 < heard["most"] <= 16_500


def test_sound_begins_when_enough_is_there_and_is_played_to_its_end(scenes: dict[str, Any], rate: int) -> None:
    played = scenes["play"]
    assert played["before"] == 0
    assert played["most"] == pytest.approx(0.5, rel=0.02)
    assert played["jump"] < 2 * step_of(200, 0.5, rate)
    report = played["report"]
    assert (report["playing"], report["bufferedS"], report["underruns"]) == (False, 0, 0)
    assert report["playedMs"] == pytest.approx(500, abs=1)


def test_an_interruption_is_silence_within_a_fade(scenes: dict[str, Any], rate: int) -> None:
    stopped = scenes["flush"]
    assert stopped["silentFrom"] <= 32
    assert stopped["jump"] < 2 * step_of(200, 0.5, rate)
    assert stopped["heard"] == pytest.approx(300, abs=5)
    assert (stopped["report"]["playing"], stopped["report"]["bufferedS"]) == (False, 0)


def test_running_dry_does_not_click_and_is_told(scenes: dict[str, Any], rate: int) -> None:
    dry = scenes["underrun"]
    assert dry["jump"] < 2 * step_of(200, 0.5, rate)
    assert (dry["dry"]["playing"], dry["dry"]["underruns"]) == (False, 1)
    assert dry["again"]["playing"] is True
    assert dry["again"]["playedMs"] > dry["dry"]["playedMs"]
