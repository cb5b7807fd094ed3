"""Free memory goes back to the system, as long as the server runs, where the C library can do that."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import time
import weakref
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from speech_mtp.serving.memory import keep_small
from tests.serving.chatting import chatting
from tests.serving.hearing import FakeRecogniser
from tests.serving.running import serving, until
from tests.serving.talking import Loudness, talking


async def kept_small_until(done: Callable[[], bool]) -> None:
    """For a minute at most: a search among all objects of the tests takes a while."""
    keeping = asyncio.ensure_future(keep_small(every_s=0.01))
    async with asyncio.timeout(60):
        while not done():
            await asyncio.sleep(0.01)
    keeping.cancel()
    await asyncio.wait({keeping})


def test_it_is_given_back_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(malloc_trim=given.append))
    asyncio.run(kept_small_until(lambda: len(given) > 2))
    assert set(given) == {0}


class Ring:
    """Refers to itself."""

    def __init__(self) -> None:
        self.me = self


def test_rings_that_nobody_refers_to_go_also_where_the_c_library_gives_nothing_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    rings: list[weakref.ref[Ring]] = []

    def gone() -> bool:
        if not rings and gc.get_freeze_count():  # what is there before is frozen
            rings.append(weakref.ref(Ring()))
        return bool(rings) and rings[0]() is None

    gc.disable()
    try:
        asyncio.run(kept_small_until(gone))
    finally:
        gc.enable()
    assert gc.get_freeze_count() == 0


def test_a_search_waits_for_what_is_still_being_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recogniser too, which is loaded beside the engine."""
    order: list[str] = []

    async def keep() -> None:
        order.append("searched")

    class Slow(FakeRecogniser):
        def warm_up(self) -> None:
            time.sleep(0.5)
            order.append("loaded")

    monkeypatch.setattr("speech_mtp.serving.service.keep_small", keep)
    with chatting(recogniser=Slow("Hello there!")):
        until(lambda: len(order) == 2)
    assert order == ["loaded", "searched"]


def test_a_server_does_so(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []

    async def keep() -> None:
        kept.append(True)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        kept.append(False)

    monkeypatch.setattr("speech_mtp.serving.service.keep_small", keep)
    with serving():
        until(lambda: kept == [True])
    assert kept == [True, False]


def test_who_has_left_leaves_no_detector_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, without a search for rings."""
    made: list[weakref.ref[Loudness]] = []

    def detector() -> Loudness:
        made.append(weakref.ref(found := Loudness()))
        return found

    monkeypatch.setattr("speech_mtp.serving.routes.realtime.silero", detector)
    with chatting() as server:
        gc.disable()
        try:
            for _ in range(3):
                with talking(server) as talk:
                    talk.say("Hello there!")
                    talk.send("response.create", response={"max_output_tokens": 40})
                    talk.until("response.output_audio.delta")
            until(lambda: not server.service.sessions)
            until(lambda: len(made) == 3 and all(found() is None for found in made))
        finally:
            gc.enable()
