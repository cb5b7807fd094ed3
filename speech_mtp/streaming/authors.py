"""Who writes the answers of a chat: our own language model, or whatever else can (:class:`Author`).

An author reads a whole history and writes one answer. What it writes goes to whoever reads and, piece by piece, to a
talker that reads it through its own backbone (:mod:`speech_mtp.streaming.reply`).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from jinja2 import TemplateError

from speech_mtp.decoding.engine import Statistics
from speech_mtp.lm.chat import Message, opening
from speech_mtp.streaming.conversation import GREEDY, Conversation
from speech_mtp.streaming.scheduler import Scheduler
from speech_mtp.types import Finish, Sampling

USUAL_ANSWER = 1024
"""Tokens of an answer where none are asked for."""

MARKUP = 16
"""Tokens, at most, that a chat template writes around a message."""


@dataclass(frozen=True)
class Wish:
    """How an answer is wanted; what is None is left to the author."""

    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    max_tokens: int | None = None
    stops: tuple[str, ...] = ()
    drafting: bool = True  # without effect where the author does not draft


@dataclass(frozen=True)
class Question:
    """A history that an author has accepted: ``messages`` that it reads, without the oldest ``dropped``, and their
    tokens, where it knows them."""

    messages: list[Message]
    wish: Wish
    dropped: int = 0
    prompt: tuple[int, ...] = ()


@dataclass
class Outcome:
    """How an answer ended and what it took; None where the author does not tell."""

    finish: Finish
    prompt_tokens: int | None = None
    tokens: int | None = None
    statistics: Statistics | None = None
    cached_tokens: int = 0  # of the prompt: had been read before


class AuthorError(Exception):
    """An author that others run has failed."""


class TooLongError(ValueError):
    """The newest message does not fit into the model's context."""


class Writing(Protocol):
    """An answer while it is written; used by the thread that ticks the scheduler."""

    @property
    def writing(self) -> bool:
        """Whether more may come."""

    def take(self) -> list[str]:
        """What was written since the last call. Raises AuthorError."""

    def take_steps(self) -> list[list[str]]:
        """The tokens that each forward has made sure since the last call, all but the last of them drafted; nothing
        where the author does not tell."""

    def close(self) -> Outcome:
        """Write no more; how it ended."""


class Author(Protocol):
    """Writes answers. ``name`` is what clients call it."""

    name: str

    def prepare(self, messages: Sequence[Message], wish: Wish) -> Question:
        """Check a history and fit it into the context. Raises ValueError for what cannot be answered."""

    def write(self, scheduler: Scheduler, question: Question, news: Callable[[], None]) -> Writing:
        """Begin to answer; ``news`` is called, in any thread, when something was written outside of a tick."""


class OwnAuthor:
    """The writer of the scheduler: a language model whose head drafts and whose drafts are verified."""

    def __init__(self, name: str, tokenizer: object, max_positions: int) -> None:
        self.name = name
        self._tokenizer, self._max_positions = tokenizer, max_positions

    def prepare(self, messages: Sequence[Message], wish: Wish) -> Question:
        """An answer has at most half of the context, and what the history leaves."""
        answer = min(wish.max_tokens or USUAL_ANSWER, self._max_positions // 2)
        kept, prompt = fit(self._tokenizer, messages, self._max_positions - answer)
        return Question(kept, wish, len(messages) - len(kept), tuple(prompt))

    def write(self, scheduler: Scheduler, question: Question, news: Callable[[], None]) -> Writing:
        wish = question.wish
        room = self._max_positions - len(question.prompt)
        longest = min(wish.max_tokens or USUAL_ANSWER, room)
        conversation = scheduler.chat(
            sampling=_sampling(wish), max_new_tokens=longest, stops=wish.stops, drafting=wish.drafting
        )
        conversation.continue_from(question.messages, list(question.prompt))
        return _OwnWriting(conversation, len(question.prompt))


def _sampling(wish: Wish) -> Sampling:
    """Greedy unless a temperature is given; without a seed, each answer is drawn anew."""
    if not wish.temperature or wish.top_p == 0:
        return GREEDY
    seed = secrets.randbits(63) if wish.seed is None else wish.seed
    return Sampling(wish.temperature, top_p=1.0 if wish.top_p is None else wish.top_p, seed=seed)


class _OwnWriting:
    def __init__(self, conversation: Conversation, prompt_tokens: int) -> None:
        self._conversation, self._prompt_tokens = conversation, prompt_tokens

    @property
    def writing(self) -> bool:
        return self._conversation.writing

    def take(self) -> list[str]:
        return self._conversation.take()

    def take_steps(self) -> list[list[str]]:
        tokenizer = self._conversation.writer.lm.tokenizer
        return [
            [tokenizer.decode([token], skip_special_tokens=True) for token in step]
            for step in self._conversation.take_steps()
        ]

    def close(self) -> Outcome:
        self._conversation.close()
        if not self._conversation.turns:  # the prompt was not read to its end
            return Outcome(Finish("cancelled"), self._prompt_tokens, 0)
        turn = self._conversation.turns[-1]
        return Outcome(turn.finish, turn.prompt_tokens, len(turn.tokens), turn.statistics, turn.cached_tokens)


# -- a history that fits ----------------------------------------------------------------------------------------------
def fit(tokenizer: object, messages: Sequence[Message], room: int) -> tuple[list[Message], list[int]]:
    """The newest ``messages`` that take at most ``room`` tokens, and these tokens.

    The oldest turns go first, a question with its answer; system messages and the last message stay. Raises
    :class:`TooLongError` where these alone are too long, and ValueError for roles that the chat template refuses.
    """
    kept = list(messages)
    while True:
        try:
            prompt = opening(tokenizer, kept)
        except TemplateError as error:
            raise ValueError(f"This model cannot read such a history: {str(error).rstrip('.')}.") from None
        over = len(prompt) - room
        if over <= 0:
            return kept, prompt
        kept = _without_oldest(tokenizer, kept, over, room)


def _without_oldest(tokenizer: object, messages: list[Message], over: int, room: int) -> list[Message]:
    """``messages`` without the oldest turn, and as many more as are needed for certain to save ``over`` tokens."""
    turns = [i for i, message in enumerate(messages[:-1]) if message["role"] != "system"]
    if not turns:
        raise TooLongError(
            f"The message is {over} tokens longer than the {room} that the model can read beside its answer; "
            "shorten it or ask for fewer new tokens."
        )
    gone: set[int] = set()
    for i in turns:
        if over <= 0 and messages[i]["role"] == "user":
            break
        gone.add(i)
        over -= MARKUP + len(tokenizer(messages[i]["content"], add_special_tokens=False)["input_ids"])  # type: ignore[operator]
    return [message for i, message in enumerate(messages) if i not in gone]
