"""Text in, text out: one conversation, as a generator of text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from speech_mtp.decoding.base import DecodingRule
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.streaming.conversation import Turn, Writer
from speech_mtp.streaming.scheduler import Scheduler
from speech_mtp.types import Sampling

__all__ = ["Chat", "Turn"]


@dataclass
class Chat:
    """A conversation with ``lm``, drafted by ``rule``. Later turns read only what is new.

    ``raw`` reads the first text as it is, without the chat template. ``turns`` grows with every finished answer.
    """

    lm: TextLM
    rule: DecodingRule
    sampling: Sampling = field(default_factory=lambda: Sampling(temperature=0))
    max_new_tokens: int = 256
    stops: tuple[str, ...] = ()
    raw: bool = False

    def __post_init__(self) -> None:
        self._scheduler = Scheduler(writer=Writer(self.lm, self.rule))
        self._conversation = self._scheduler.chat(
            sampling=self.sampling, max_new_tokens=self.max_new_tokens, stops=self.stops, raw=self.raw
        )

    @property
    def turns(self) -> list[Turn]:
        """The answers so far."""
        return self._conversation.turns

    def ask(self, text: str) -> Iterator[str]:
        """The answer to ``text``, in pieces as they become sure.

        Raises ValueError when text and answer might not fit into the model's context.
        """
        self._conversation.ask(text)
        while self._conversation.writing:
            self._scheduler.tick()
            yield from self._conversation.take()
