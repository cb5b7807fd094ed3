"""Text in, text out: the turns of a conversation over one cache, as generators of text."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from speech_mtp.decoding.base import DecodingRule
from speech_mtp.decoding.text import Statistics, TextRun, start
from speech_mtp.lm.chat import Message, TextStream, following, opening
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.types import Finish, Sampling


@dataclass
class Turn:
    """What one answer was and took. ``prompt_tokens`` are new in this turn; a stop string is not in ``text``."""

    text: str
    prompt_tokens: int
    tokens: list[int]
    finish: Finish
    statistics: Statistics
    seconds: float
    first_text_s: float


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
    turns: list[Turn] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._run: TextRun | None = None
        self._messages: list[Message] = []

    def ask(self, text: str) -> Iterator[str]:
        """The answer to ``text``, in pieces as they become sure.

        Raises ValueError when text and answer might not fit into the model's context.
        """
        began = time.perf_counter()
        messages = [*self._messages, {"role": "user", "content": text}]
        prompt = self._prompt(text, messages)
        run = self._begin(prompt)
        stream, said, first_s = TextStream(self.lm.tokenizer, self.stops), "", None
        read = 0
        while True:
            ended = run.advance() is None
            piece = stream.close() if ended else stream.push(run.tokens[0][read:])
            read = len(run.tokens[0])
            if piece:
                first_s = first_s or time.perf_counter() - began
                said += piece
                yield piece
            if ended:
                break
        seconds = time.perf_counter() - began
        finish = run.finish[0]
        assert finish is not None
        self.turns.append(Turn(said, len(prompt), run.tokens[0], finish, run.statistics, seconds, first_s or seconds))
        self._messages = [*messages, {"role": "assistant", "content": said}]

    def _prompt(self, text: str, messages: list[Message]) -> list[int]:
        if not self.turns:
            return list(self.lm.tokenizer(text)["input_ids"]) if self.raw else opening(self.lm.tokenizer, messages)
        last = self.turns[-1].tokens[-1]
        return following(self.lm.tokenizer, messages, last if last in self.lm.ends else None)

    def _begin(self, prompt: list[int]) -> TextRun:
        if self._run is None:
            self._run = start(self.lm, [prompt], self.sampling, self.rule, self.max_new_tokens, self.stops)
        else:
            self._run.statistics = Statistics()
            self._run.say([prompt])
        return self._run
