"""One utterance of a session: its text as it comes, its sound as it goes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from torch import Tensor

from speech_mtp.serving.bodies import AudioFormat, Speech
from speech_mtp.serving.encoding import Encoder, whole
from speech_mtp.serving.errors import ApiError
from speech_mtp.serving.lexicon import Readings
from speech_mtp.serving.orders import Order
from speech_mtp.serving.speaking import Speaking
from speech_mtp.streaming.feed import MAX_TOTAL


class Config(Speech):
    """``session.config``. ``stream_audio``: sound as it is made, or one frame for each utterance."""

    response_format: AudioFormat = "pcm"
    stream_audio: bool = True
    word_timestamps: bool = True


class Utterance:
    """Text of one utterance, as it comes."""

    def __init__(self, asked: Order, config: Config) -> None:
        self.asked, self.config = asked, config
        self.texts: asyncio.Queue[str | None] = asyncio.Queue()
        self.characters = 0
        self.ended = self.cancelled = False
        self.speaking: Speaking | None = None

    def push(self, text: str) -> None:
        """Raises ApiError when it is more than can be spoken in one go."""
        self.characters += len(text)
        if self.characters > MAX_TOTAL:
            self.cancel()
            raise ApiError(400, f"The utterance is longer than {MAX_TOTAL} characters; flush it in between.", "text")
        readings: Readings | None = self.asked.readings
        self.texts.put_nowait(readings.push(text) if readings is not None else text)

    def end(self) -> None:
        """The text ends here."""
        if self.asked.readings is not None:
            self.texts.put_nowait(self.asked.readings.flush())
        self.texts.put_nowait(None)
        self.ended = True

    def cancel(self) -> None:
        """Say no more of it."""
        self.cancelled = self.ended = True
        self.texts.put_nowait(None)
        if self.speaking is not None:
            self.speaking.cancel()


class Sound:
    """Encodes one utterance: frames as they come, or one at the end."""

    def __init__(self, send: Callable[[bytes], Awaitable[None]], utterance: Utterance, sample_rate: int) -> None:
        self._send, self._asked, self._rate = send, utterance.asked, sample_rate
        self._encoder = None
        if utterance.config.stream_audio:
            self._encoder = Encoder(self._asked.format, sample_rate, self._asked.speed)
        self._waves: list[Tensor] = []
        self.total = 0

    async def push(self, wave: Tensor) -> None:
        """More sound of the engine's."""
        if self._encoder is None:
            self._waves.append(wave)
        else:
            await self._out(self._encoder.push(wave))

    async def close(self) -> None:
        """That was all of it."""
        if self._encoder is not None:
            await self._out(self._encoder.close())
        elif self._waves:
            asked = self._asked
            await self._out(await asyncio.to_thread(whole, asked.format, self._waves, self._rate, asked.speed))

    async def _out(self, data: bytes) -> None:
        if data:
            self.total += len(data)
            await self._send(data)


async def feed(utterance: Utterance, speaking: Speaking, first: str) -> None:
    """Give the text of ``utterance``, of which ``first`` has come, to the engine as it comes."""
    text: str | None = first
    while text is not None:
        speaking.say(text)
        text = await utterance.texts.get()
    speaking.end()
