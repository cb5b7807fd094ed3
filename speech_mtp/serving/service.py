"""The seam between protocols and the engine: routes ask here for speech, and know neither threads nor the scheduler.

Other protocols (chat, realtime) stand on the same service: they take a slot with :meth:`VoiceService.speak`, and have
chats answered, spoken or not, with :meth:`VoiceService.answer`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from torch import Tensor

from speech_mtp.decoding.base import DecodingRule
from speech_mtp.frontends.base import NO_HINT, SAMPLE_RATE, Hint, Recogniser, Transcript, Wave
from speech_mtp.lm.bundle import SpeechModel
from speech_mtp.lm.chat import Message
from speech_mtp.lm.units import UnitMaker
from speech_mtp.serving.admission import Admission
from speech_mtp.serving.answering import Answering
from speech_mtp.serving.arrivals import Arrivals
from speech_mtp.serving.client_secrets import ClientSecrets
from speech_mtp.serving.engine import Engine
from speech_mtp.serving.errors import ApiError, EngineFailedError
from speech_mtp.serving.listening import Listening, Source
from speech_mtp.serving.memory import keep_small
from speech_mtp.serving.metrics import Metrics
from speech_mtp.serving.names import Names
from speech_mtp.serving.said import Said
from speech_mtp.serving.settings import Settings
from speech_mtp.serving.sound_in import resampled
from speech_mtp.serving.speaking import Manner, Speaking
from speech_mtp.serving.voices import ClientVoices, owner_of
from speech_mtp.serving.worker import Worker
from speech_mtp.streaming.authors import Author, Question, Wish
from speech_mtp.streaming.conversation import Writer
from speech_mtp.streaming.reply import MAX_CHARS
from speech_mtp.streaming.scheduler import Scheduler

log = logging.getLogger("speech_mtp.serving")


class VoiceService:
    """Speaks with ``model`` for many clients; ``author`` answers chats, if anything shall, for which ``make_writer``
    makes the scheduler's writer where the author is that; ``recogniser`` hears what clients say, if anything shall.

    ``rule`` drafts groups of speech; with ``codec_thread`` the codec runs beside the language models.
    """

    def __init__(
        self,
        model: SpeechModel,
        settings: Settings,
        make_writer: Callable[[], Writer] | None = None,
        rule: DecodingRule | None = None,
        codec_thread: bool = True,
        author: Author | None = None,
        recogniser: Recogniser | None = None,
    ) -> None:
        self.model, self.settings = model, settings
        self.author, self.recogniser = author, recogniser
        self.sample_rate = model.codec.spec.sample_rate
        self.names = Names(model.name, list(model.voices), settings)
        if author is not None:
            self.names.add_author(author.name, settings.chat_aliases)
        if recogniser is not None:
            self.names.add_recogniser(recogniser.name, settings.listener_aliases)
        self.admission = Admission(settings.max_streams, settings.max_queue)
        self.chats = Admission(settings.max_chats, settings.max_queue, "answers are being written")
        self.ears = Worker("ears", settings.max_queue, "recording is being heard")
        self.voices = _voices(model, settings)
        self.voice_maker = Worker("voices", settings.max_queue, "recording is being made a voice")
        self.said = Said()
        self.secrets = ClientSecrets(settings.keys)
        self.metrics = Metrics(settings.max_streams, model.lm.layout.frames_per_group)

        def build() -> Scheduler:
            writer = make_writer() if make_writer is not None else None
            return Scheduler(model, writer, rule, settings.max_streams, codec_thread=codec_thread)

        self.engine = Engine(build)
        self.speaking: set[Speaking] = set()
        self.answering: set[Answering] = set()
        self.listening: set[Listening] = set()
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
        if self.recogniser is not None:
            self._loading = asyncio.ensure_future(self.ears.run("", self.recogniser.warm_up))
        self._keeping_small = asyncio.ensure_future(self._keep_small())

    async def _keep_small(self) -> None:
        """From when everything is loaded."""
        await self.warm.wait()
        if self.recogniser is not None:
            await asyncio.wait({self._loading})
        await keep_small()

    async def stop(self) -> None:
        """End the engine; whoever is still being spoken to is cut off."""
        self._keeping_small.cancel()
        self.ears.close()
        self.voice_maker.close()
        await asyncio.to_thread(self.engine.stop)

    @property
    def ready(self) -> bool:
        """Whether new work is taken."""
        return self.warm.is_set() and self.engine.alive and not self.admission.draining

    async def drain(self, deadline_s: float) -> bool:
        """Take no new work and wait until the streams have ended; whether all did within ``deadline_s``. Sessions hear
        of it by :attr:`draining` and end when they have finished what they say."""
        self.admission.drain()
        self.chats.drain()
        self.ears.admission.drain()
        self.voice_maker.admission.drain()
        self.draining.set()
        try:
            async with asyncio.timeout(deadline_s):
                while self.speaking or self.answering or self.sessions or self.ears.busy or self.voice_maker.busy:
                    await asyncio.sleep(0.05)
        except TimeoutError:
            log.warning("%d streams did not end within %g s and are cut off", len(self.speaking), deadline_s)
            ended = EngineFailedError("The server has ended.")
            waited_for: list[Arrivals[Any]] = [*self.listening, *self.answering, *self.speaking]
            for arrivals in waited_for:
                arrivals.cancel(ended)
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

        try:
            speaking = Speaking(self.engine, manner, self.sample_rate, ended)
        except BaseException:
            slot.leave()
            raise
        self.speaking.add(speaking)
        return speaking

    async def question(self, messages: Sequence[Message], wish: Wish) -> Question:
        """A history, checked and fitted into the context of what answers, away from the loop. Raises ValueError for
        what cannot be answered, ApiError 400 where nothing answers."""
        if self.author is None:
            raise ApiError(400, "This server answers no chats; start it with --llm or --llm-url.", code="no_chat_model")
        return await asyncio.to_thread(self.author.prepare, messages, wish)

    async def answer(self, key: str, question: Question, manner: Manner | None = None) -> Answering:
        """The answer to ``question``, as soon as ``key`` has a slot; spoken too, if a ``manner`` says how.

        Raises ApiError when the service is not ready (503), or when too many wait already (429).
        """
        assert self.author is not None
        self.check_ready()
        slot = await self.chats.enter(key)
        speaking = None
        try:
            if manner is not None:
                speaking = await self.speak(key, replace(manner, is_reply=True, max_chars=MAX_CHARS))
        except BaseException:
            slot.leave()
            raise

        def ended(answering: Answering) -> None:
            slot.leave()
            self.answering.discard(answering)
            self.metrics.wrote(answering.outcome)

        answering = Answering(self.engine, self.author, question, speaking, ended)
        self.answering.add(answering)
        return answering

    async def hear(self, source: Source, hint: Hint = NO_HINT, key: str = "") -> Listening:
        """What is said in a recording, as soon as it is the turn of ``key``; iterate over its segments.

        Raises ApiError when nothing recognises speech (501), when too many wait (429) or the server stops (503).
        """

        def ended(listening: Listening) -> None:
            self.listening.discard(listening)
            self.metrics.heard(listening)

        listening = Listening(self.check_recogniser(), source, hint, ended)
        self.listening.add(listening)
        try:
            await self.ears.start(key, listening.work)
        except BaseException:
            listening.cancel()
            raise
        return listening

    def voice(self, client: str, voice: str | None) -> str | Tensor:
        """A voice that ``client`` may speak with: the timbre ``[E]`` of one of its own, or the name of one of the
        model's (None: its first). Raises ApiError 400 for an unknown one."""
        timbre = None
        if voice is not None and self.voices is not None:
            timbre = self.voices.timbre(owner_of(client), voice)
        return self.names.voice(voice) if timbre is None else timbre

    def knows_voice(self, client: str, voice: str) -> bool:
        """Whether ``client`` may speak with ``voice``."""
        mine = self.voices is not None and self.voices.find(owner_of(client), voice) is not None
        return mine or self.names.knows_voice(voice)

    def check_voices(self) -> ClientVoices:
        """The voices of clients. Raises ApiError 501 where they may not leave any."""
        if self.voices is None:
            message = "This server keeps no voices of clients; that needs --voices-dir and a codec with timbre."
            raise ApiError(501, message, code="no_voices")
        return self.voices

    def check_recogniser(self) -> Recogniser:
        """What recognises speech. Raises ApiError 501 where nothing does."""
        if self.recogniser is None:
            message = "This server recognises no speech; its operator can start it with --asr."
            raise ApiError(501, message, code="no_recogniser")
        return self.recogniser

    async def transcribe(self, wave: Wave, rate_hz: int, hint: Hint = NO_HINT, key: str = "") -> Transcript:
        """What is said in ``wave [S]``, float32 at ``rate_hz``. Errors as for :meth:`hear`, and ValueError for a hint
        that the recogniser does not understand."""
        source = partial(resampled, wave, rate_hz, SAMPLE_RATE)
        async with await self.hear(source, hint, key) as listening:
            return await listening.transcript()

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


def _voices(model: SpeechModel, settings: Settings) -> ClientVoices | None:
    """Where clients may leave voices; None where they may not, or where the codec has no timbre."""
    if settings.voices_dir is None or not model.codec.spec.timbre_dim:
        return None
    return ClientVoices(settings.voices_dir, model.codec, settings.voice_capacity)
