"""The engine's thread: many at once sound as each alone, who leaves costs at most a step, who waits costs nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch

from speech_mtp.serving.errors import ApiError, EngineFailedError
from speech_mtp.serving.service import VoiceService
from speech_mtp.serving.settings import Settings
from speech_mtp.serving.speaking import Manner, Speaking
from speech_mtp.streaming.pipeline import speak
from speech_mtp.streaming.scheduler import Scheduler
from speech_mtp.streaming.stream import Chunk
from speech_mtp.types import Sampling
from tests.serving.running import LONG, TEXT
from tests.tiny import tiny_model

MODEL = tiny_model()


@asynccontextmanager
async def started(settings: Settings | None = None, **more: Any) -> AsyncIterator[VoiceService]:
    service = VoiceService(MODEL, settings or Settings(), **more)
    await service.start()
    await service.warm.wait()
    yield service
    await service.stop()
    assert not service.engine.alive


async def asked(service: VoiceService, text: str = TEXT, manner: Manner | None = None, key: str = "me") -> Speaking:
    speaking = await service.speak(key, manner or Manner("low"))
    speaking.say(text)
    speaking.end()
    return speaking


async def sound(speaking: Speaking) -> torch.Tensor:
    async with speaking:
        return torch.cat([chunk.wave async for chunk in speaking])


def alone(text: str, voice: str, seed: int) -> torch.Tensor:
    sampling = replace(MODEL.sampling, seed=seed)
    return torch.cat([chunk.wave for chunk in speak(MODEL, text, voice, sampling)])


@pytest.mark.parametrize("codec_thread", [False, True])
def test_streams_at_once_sound_as_each_alone(codec_thread: bool) -> None:
    jobs = [(LONG[: 40 + 20 * i], ("low", "high")[i % 2], i) for i in range(12)]

    async def run() -> list[torch.Tensor]:
        async with started(Settings(max_streams=4, max_queue=20), codec_thread=codec_thread) as service:

            async def one(text: str, voice: str, seed: int) -> torch.Tensor:
                await asyncio.sleep(0.01 * seed)
                return await sound(await asked(service, text, Manner(voice, Sampling(seed=seed))))

            async def doomed(i: int) -> None:
                async with await asked(service, LONG[:900]) as speaking:
                    async for _ in speaking:
                        return

            found = await asyncio.gather(*(one(*job) for job in jobs), *(doomed(i) for i in range(4)))
            assert service.admission.taken == 0
            return found[: len(jobs)]

    for job, made in zip(jobs, asyncio.run(run()), strict=True):
        torch.testing.assert_close(made, alone(*job), atol=1e-4, rtol=0)


def test_who_leaves_costs_at_most_the_step_that_runs() -> None:
    async def run() -> int:
        async with started() as service:
            speaking = await asked(service, LONG)
            await speaking.begun()
            seen: list[int] = []
            speaking.cancel()
            # Obeyed after the cancellation, so before any further tick.
            service.engine.do(lambda _: seen.append(service.engine.steps))
            while not seen:
                await asyncio.sleep(0.001)
            before = seen[0]
            await asyncio.sleep(0.3)
            assert service.engine.scheduler is not None
            assert service.engine.scheduler.streams == []
            return service.engine.steps - before

    assert asyncio.run(run()) <= 1


def test_an_engine_without_work_sleeps() -> None:
    async def run() -> float:
        async with started() as service:
            speaking = await service.speak("me", Manner("low"))
            speaking.say("Hello there, the quick brown fox jumps over the lazy dog. It is")  # and no more comes
            await speaking.begun()
            await asyncio.sleep(0.3)
            before, steps = time.process_time(), service.engine.steps
            await asyncio.sleep(0.5)
            assert service.engine.steps == steps
            spent = time.process_time() - before
            speaking.cancel()
            return spent

    assert asyncio.run(run()) < 0.1


@pytest.mark.parametrize("speed", [0.5, 1.0, 2.0])
def test_a_paced_stream_is_made_as_it_is_heard(speed: float) -> None:
    async def run() -> None:
        async with started() as service:
            text = LONG[: int(450 * speed)]
            speaking = await asked(service, text, Manner("low", ahead_s=0.5, speed=speed))
            began, audio_s, ahead = time.monotonic(), 0.0, []
            async with speaking:
                await speaking.begun()
                assert speaking.tally.first_audio_s is not None
                first = speaking.tally.began + speaking.tally.first_audio_s  # as the engine saw it
                async for chunk in speaking:
                    ahead.append(audio_s - (time.monotonic() - first))  # when the chunk was made, at the latest
                    audio_s += len(chunk.wave) / service.sample_rate / speed
            assert max(ahead) < 0.5 + 0.8 / min(speed, 1)  # a chunk or two more
            assert time.monotonic() - began > audio_s - 0.8 - 1 / min(speed, 1)
            assert audio_s > 2
            assert speaking.tally.rested_s > 1

    asyncio.run(run())


def test_a_gap_that_a_listener_hears_is_counted() -> None:
    async def run() -> int:
        async with started() as service:
            speaking = await service.speak("me", Manner("low"))
            for now, seconds in ((10.0, 0.01), (10.07, 0.04), (10.12, 0.08), (10.3, 0.08), (10.31, 0.08)):
                speaking._count([Chunk(torch.zeros(int(seconds * service.sample_rate)))], now)
            speaking.cancel()
            return speaking.tally.underruns

    assert asyncio.run(run()) == 1  # sound until 10.21, more at 10.3


def test_a_client_that_takes_nothing_stops_the_work() -> None:
    async def run() -> None:
        async with started() as service:
            speaking = await asked(service, LONG, Manner("low", backlog_s=1.0))
            await speaking.begun()
            await asyncio.sleep(1.5)
            steps = service.engine.steps
            await asyncio.sleep(0.3)
            assert service.engine.steps == steps
            assert 1.0 < sum(len(c.wave) for c in speaking._items) / service.sample_rate < 2.0
            whole = await sound(speaking)  # it reads on, and nothing was lost
            torch.testing.assert_close(whole, alone(LONG, "low", 5), atol=1e-4, rtol=0)

    asyncio.run(run())


def test_text_that_cannot_be_spoken_ends_its_stream_alone() -> None:
    async def run() -> None:
        async with started() as service:
            good = await asked(service)
            bad = await asked(service, "漢字 is not read.")
            with pytest.raises(ValueError, match="Chinese"):
                await sound(bad)
            with pytest.raises(ValueError, match="no voice 'nobody'"):
                await sound(await asked(service, manner=Manner("nobody")))
            torch.testing.assert_close(await sound(good), alone(TEXT, "low", 5), atol=1e-4, rtol=0)
            assert service.admission.taken == 0

    asyncio.run(run())


def test_an_engine_that_fails_starts_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        async with started() as service:
            speaking = await asked(service, LONG)
            await speaking.begun()
            tick = Scheduler.tick

            def once(scheduler: Scheduler) -> bool:
                monkeypatch.setattr(Scheduler, "tick", tick)
                raise RuntimeError("no memory")

            monkeypatch.setattr(Scheduler, "tick", once)
            with pytest.raises(EngineFailedError):
                await sound(speaking)
            assert service.engine.failures == 1
            torch.testing.assert_close(await sound(await asked(service)), alone(TEXT, "low", 5), atol=1e-4, rtol=0)

    asyncio.run(run())


def test_an_engine_that_cannot_start_says_so() -> None:
    async def run() -> None:
        service = VoiceService(MODEL, Settings(), make_writer=lambda: 1 / 0)  # type: ignore[arg-type,return-value]
        await service.start()
        await service.warm.wait()
        assert isinstance(service.engine.error, ZeroDivisionError)
        with pytest.raises(ApiError) as refused:
            await service.speak("me", Manner())
        assert refused.value.status_code == 503

    asyncio.run(run())


def test_draining_lets_streams_end_and_nobody_in() -> None:
    async def run() -> None:
        async with started(Settings(max_streams=1)) as service:
            speaking = await asked(service)
            waiting = asyncio.ensure_future(asked(service))
            await asyncio.sleep(0.01)
            drained = asyncio.ensure_future(service.drain(20))
            await asyncio.sleep(0.01)
            for late in (waiting, asyncio.ensure_future(asked(service))):
                with pytest.raises(ApiError) as refused:
                    await late
                assert refused.value.status_code == 503
                assert "Retry-After" in refused.value.headers
            torch.testing.assert_close(await sound(speaking), alone(TEXT, "low", 5), atol=1e-4, rtol=0)
            assert await drained

    asyncio.run(run())


def test_a_drain_has_a_deadline() -> None:
    async def run() -> None:
        async with started() as service:
            speaking = await service.speak("me", Manner("low"))  # whose text never comes
            assert not await service.drain(0.2)
            with pytest.raises(EngineFailedError):
                await sound(speaking)
            assert service.speaking == set()

    asyncio.run(run())
