"""Slots, the queue, keys in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from speech_mtp.serving.admission import Admission, Slot
from speech_mtp.serving.errors import ApiError


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_slots_then_a_queue_then_429() -> None:
    async def work() -> None:
        admission = Admission(2, 2)
        slots = [await admission.enter("a") for _ in range(2)]
        queued = [asyncio.ensure_future(admission.enter("a")) for _ in range(2)]
        await settle()
        assert (admission.taken, admission.waiting) == (2, 2)
        with pytest.raises(ApiError) as refused:
            await admission.enter("b")
        assert refused.value.status_code == 429
        assert 1 <= int(refused.value.headers["Retry-After"]) <= 60
        slots[0].leave()
        slots[0].leave()  # once is enough
        await settle()
        assert [one.done() for one in queued] == [True, False]
        assert (admission.taken, admission.waiting) == (2, 1)
        for slot in (slots[1], queued[0].result()):
            slot.leave()
        (await queued[1]).leave()
        assert (admission.taken, admission.waiting) == (0, 0)

    run(work())


def test_keys_take_turns() -> None:
    async def work() -> None:
        admission, order = Admission(1, 20), []
        slot = await admission.enter("first")

        async def one(key: str) -> None:
            inner = await admission.enter(key)
            order.append(key)
            await settle()
            inner.leave()

        tasks = [asyncio.ensure_future(one(key)) for key in "aaaaabbc"]
        await settle()
        slot.leave()
        await asyncio.gather(*tasks)
        assert "".join(order) == "abcabaaa"

    run(work())


@pytest.mark.parametrize("turn_came", [False, True])
def test_who_leaves_the_queue_takes_no_slot(turn_came: bool) -> None:
    async def work() -> None:
        admission = Admission(1, 5)
        slot = await admission.enter("a")
        gone = asyncio.ensure_future(admission.enter("a"))
        after = asyncio.ensure_future(admission.enter("b"))
        await settle()
        if turn_came:
            slot.leave()
            gone.cancel()
        else:
            gone.cancel()
            await settle()
            slot.leave()
        await settle()
        assert isinstance(await after, Slot)
        assert (admission.taken, admission.waiting) == (1, 0)

    run(work())


def test_retry_after_follows_the_texts_and_how_long_they_held_their_slots() -> None:
    async def work() -> None:
        admission = Admission(2, 4)
        admission._pace_s = 0.1
        slots = [await admission.enter("a", 100), await admission.enter("a", 300)]
        tasks = [asyncio.ensure_future(admission.enter("a", 50 * i)) for i in (1, 2)]
        await settle()
        # Slots are free after 10 and 30 s; the first of the waiting speaks till 15, the second till 25.
        assert admission.retry_after_s() == 25
        slots[0].leave()  # at once, so texts go faster than was thought
        assert admission._pace_s == pytest.approx(0.08, abs=1e-3)
        for task in tasks:
            await settle()
            task.cancel()

    run(work())
