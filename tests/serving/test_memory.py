"""Free memory goes back to the system, as long as the server runs, where the C library can do that."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
from types import SimpleNamespace

import pytest

from speech_mtp.serving.memory import keep_small
from tests.serving.running import serving


async def kept_small_for(seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await keep_small(every_s=0.01)


def test_it_is_given_back_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(malloc_trim=given.append))
    asyncio.run(kept_small_for(0.5))
    assert len(given) > 2
    assert set(given) == {0}


def test_a_c_library_that_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    asyncio.run(asyncio.wait_for(keep_small(), 1.0))


def test_a_server_does_so(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []

    async def keep() -> None:
        kept.append(True)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        kept.append(False)

    monkeypatch.setattr("speech_mtp.serving.service.keep_small", keep)
    with serving():
        assert kept == [True]
    assert kept == [True, False]
