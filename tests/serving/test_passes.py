"""What stands for a key in a browser: holds for its key, until its time, and cannot be made without the key."""

from __future__ import annotations

import pytest

from speech_mtp.serving.passes import LIFE_S, Passes
from speech_mtp.serving.settings import Settings
from tests.serving.running import serving

KEYS = ("first-key-of-the-tests", "second-key-of-the-tests")


def test_a_pass_stands_for_its_key_until_its_time() -> None:
    now = 1_000_000.0
    passes = Passes(KEYS, lambda: now)
    issued = passes.issue(KEYS[1])
    assert issued is not None
    assert passes.holder(issued) == 1
    assert Passes(KEYS, lambda: now).holder(issued) == 1, "after a restart too"
    now += LIFE_S - 1
    assert passes.holder(issued) == 1
    now += 1
    assert passes.holder(issued) is None


def test_a_pass_says_nothing_of_its_key_and_ends_with_it() -> None:
    issued = Passes(KEYS).issue(KEYS[0]) or ""
    assert KEYS[0] not in issued
    assert Passes(("another-key-of-the-tests", KEYS[0])).holder(issued) is None
    assert Passes(()).holder(issued) is None
    assert Passes(KEYS).issue("no-key-of-the-tests") is None


@pytest.mark.parametrize(
    "changed", ["", "0", "0.9999999999.", "1.{until}.{sign}", "0.9999999999.{sign}", "0.²5.{sign}"]
)
def test_a_pass_cannot_be_made_up(changed: str) -> None:
    passes = Passes(KEYS)
    _, until, sign = (passes.issue(KEYS[0]) or "").split(".")
    assert passes.holder(changed.format(until=until, sign=sign)) is None


def test_the_door_takes_a_pass_in_place_of_a_key() -> None:
    with serving(Settings(keys=KEYS)) as server:
        issued = Passes(KEYS).issue(KEYS[0])
        assert server.http.get("/v1/models").status_code == 401
        assert server.http.get("/v1/models", headers={"cookie": f"speech_mtp_pass={issued}"}).status_code == 200
        assert server.http.get("/v1/models", headers={"cookie": "speech_mtp_pass=0.1.a; ,"}).status_code == 401
        both = {"cookie": f"speech_mtp_pass={issued}", "authorization": "Bearer wrong-key-of-the-tests"}
        assert server.http.get("/v1/models", headers=both).status_code == 401, "a key that is sent must be one"
        foreign = {"cookie": f"speech_mtp_pass={issued}", "origin": "http://evil.example"}
        assert server.http.get("/v1/models", headers=foreign).status_code == 403
