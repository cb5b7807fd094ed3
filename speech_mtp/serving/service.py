"""The seam between protocols and the engine: routes ask here for speech, and know neither threads nor the scheduler.

Other protocols (chat, realtime) stand on the same service: they take a slot with :meth:`VoiceService.speak`, or add a
:class:`speech_mtp.serving.engine.Job` of their own to ``engine`` for what the scheduler's writer makes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from speech_mtp.decoding.base import DecodingRule
from speech_mtp.lm.bundle import SpeechModel
from speech_mtp.lm.units import UnitMaker
from speech_mtp.serving.admission import Admission
from speech_mtp.serving.engine import Engine
from speech_mtp.serving.errors import ApiError, EngineFailedError
from speech_mtp.serving.metrics import Metrics
from speech_mtp.serving.names import Names
from speech_mtp.serving.settings import Settings
from speech_mtp.serving.speaking import Manner, Speaking
from speech_mtp.streaming.conversation import Writer
from speech_mtp.streaming.scheduler import Scheduler

log = logging.getLogger("speech_mtp.serving")


class VoiceService:
    """Speaks with ``model`` for many clients; ``make_writer`` makes what writes text, if anything shall.

    ``rule`` drafts groups of speech; with ``codec_thread`` the codec runs beside the language models.
    """

    def __init__(
        self,
        model: SpeechModel,
        settings: Settings,
        make_writer: Callable[[], Writer] | None = None,
        rule: DecodingRule | None = None,
        codec_thread: bool = True,
    ) -> None:
        self.model, self.settings = model, settings
        self.sample_rate = model.codec.spec.sample_rate
        self.names = Names(model.name, list(model.voices), settings)
        self.admission = Admission(settings.max_streams, settings.max_queue)
        self.metrics = Metrics(settings.max_streams, model.lm.layout.frames_per_group)

        def build() -> Scheduler:
            writer = make_writer() if make_writer is not None else None
            return Scheduler(model, writer, rule, settings.max_streams, codec_thread=codec_thread)

        self.engine = Engine(build)
        self.speaking: set[Speaking] = set()
        self.sessions: set[object] = set()  # sockets that are to be told when the server stops
        self.warm = asyncio.Event()
        self.draining = asyncio.Event()

    # -- life -----------------------------------------------------------------------------------------------------
    async def start(self) -> None:
        """Begin to warm up; :attr:`warm` is set when that is done."""
        loop = asyncio.get_running_loop()

        def tell() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(self.warm.set)

        self.engine.start(tell)

    async def stop(self) -> None:
        """End the engine; whoever is still being spoken to is cut off."""
        await asyncio.to_thread(self.engine.stop)

    @property
    def ready(self) -> bool:
        """Whether new work is taken."""
        return self.warm.is_set() and self.engine.alive and not self.admission.draining

    async def drain(self, deadline_s: float) -> bool:
        """Take no new work and wait until the streams have ended; whether all did within ``deadline_s``. Sessions hear
        of it by :attr:`draining` and end when they have finished what they say."""
        self.admission.drain()
        self.draining.set()
        try:
            async with asyncio.timeout(deadline_s):
                while self.speaking or self.sessions:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            log.warning("%d streams did not end within %g s and are cut off", len(self.speaking), deadline_s)
            for speaking in list(self.speaking):
                speaking.cancel(EngineFailedError("The server has ended."))
            return False
        return True

    # -- work -----------------------------------------------------------------------------------------------------
    async def speak(self, key: str, manner: Manner, characters: int | None = None) -> Speaking:
        """An utterance whose text is still to be said, as soon as ``key`` has a slot; give it text, iterate over it.
        ``characters`` of it there will be, if that is known.

        Raises ApiError when the service is not ready (503), or when too many wait already (429).
        """
        self.check_ready()
        slot = await self.admission.enter(key, characters)

        def ended(speaking: Speaking) -> None:
            slot.leave()
            self.speaking.discard(speaking)
            self.metrics.spoke(speaking)

        speaking = Speaking(self.engine, manner, self.sample_rate, ended)
        self.speaking.add(speaking)
        return speaking

    def check_ready(self) -> None:
        """Raise ApiError 503 while the service cannot take work."""
        self.admission.check_open()
        if not self.ready:
            raise ApiError(503, "The server is still warming up; try again soon.", headers={"Retry-After": "2"})

    def count_tokens(self, text: str) -> int:
        """Tokens of ``text`` by the tokenizer of the language model that reads it."""
        maker = self.model.maker
        if isinstance(maker, UnitMaker):
            return len(maker.backbone.text_tokens.encode(text, add_special_tokens=False).ids)
        return len(maker.tokenizer(text, add_special_tokens=False)["input_ids"])

    def figures(self) -> bytes:
        """The metrics, as they are now."""
        m = self.metrics
        m.running.set(self.admission.taken)
        m.waiting.set(self.admission.waiting)
        m.engine_steps.set(self.engine.steps)
        m.engine_failures.set(self.engine.failures)
        return m.exposition()
