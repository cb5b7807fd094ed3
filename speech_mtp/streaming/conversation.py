"""Text in, text out, for many conversations at once: the rows of one run, prompts read in pieces.

A conversation keeps its row between turns, so later turns read only what is new. It does no work by itself: the writer
makes a step when it is asked to (:mod:`speech_mtp.streaming.scheduler`).
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from speech_mtp.decoding.base import DecodingRule
from speech_mtp.decoding.engine import Statistics
from speech_mtp.decoding.laws import TextLaw
from speech_mtp.decoding.text import Answer, TextRun
from speech_mtp.decoding.vanilla import Vanilla
from speech_mtp.lm.chat import Message, TextStream, following, opening
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.streaming.prompt_cache import PromptCache
from speech_mtp.types import Finish, RowSampling, Sampling

GREEDY = Sampling(temperature=0)

CHUNK = 64
"""Tokens of a prompt that are read at a time, on a fixed grid, so that a long one does not hold up what is spoken."""


@dataclass
class Turn:
    """What one answer was and took. ``prompt_tokens`` are new in this turn, ``cached_tokens`` of them had been read
    before; a stop string is not in ``text``."""

    text: str
    prompt_tokens: int
    tokens: list[int]
    finish: Finish
    statistics: Statistics
    seconds: float
    first_text_s: float
    cached_tokens: int = 0


class Conversation:
    """A chat whose answers are written by a :class:`Writer`. :meth:`ask`, then :meth:`take` until :attr:`writing` is
    False; ``turns`` grows with every finished answer."""

    def __init__(self, writer: Writer, sampling: Sampling, answer: Answer, raw: bool) -> None:
        self.writer, self.sampling, self.answer, self.raw = writer, sampling, answer, raw
        self.turns: list[Turn] = []
        self.messages: list[Message] = []
        self.place: int | None = None  # in the writer's run
        self.reading: Any = None  # its row, while a prompt is read
        self.unread: deque[list[int]] = deque()
        self.read: list[int] = []  # by the row that reads the prompt
        self.cached, self.stem = 0, 0  # tokens of the prompt: read before, and after which the row is kept
        self.writing = self.closed = False
        self.statistics = Statistics()
        self._prompt: list[int] = []
        self._began, self._said = 0.0, ""
        self._first: float | None = None
        self._pieces: deque[str] = deque()
        self._steps: deque[list[int]] = deque()

    def ask(self, text: str) -> None:
        """A turn of the user, to be answered. Raises ValueError when text and answer might not fit into the model's
        context, and while an answer is being written."""
        if self.closed:
            raise ValueError("The conversation has been closed; open a new one.")
        if self.writing:
            raise ValueError("An answer is being written; take all of it, or cancel, before the next question.")
        messages = [*self.messages, {"role": "user", "content": text}]
        self._begin(messages, self._prompt_of(text, messages))

    def continue_from(self, messages: list[Message], prompt: list[int]) -> None:
        """Answer the last of ``messages``, a history that was held elsewhere; ``prompt`` are its tokens. Only for a
        conversation that is new. Raises ValueError as :meth:`ask`."""
        assert self.place is None, "the conversation has begun already"
        self._begin(messages, prompt)

    def _begin(self, messages: list[Message], prompt: list[int]) -> None:
        if not prompt:
            raise ValueError("There is nothing to read; ask something.")
        self.writer.run_of(self).check_room(self.answer, len(prompt))
        self.messages, self._prompt = messages, prompt
        self._began, self._first, self._said = time.perf_counter(), None, ""
        self._text = TextStream(self.writer.lm.tokenizer, self.answer.stops)
        self.statistics, self.writing = Statistics(), True
        self._steps.clear()
        self.writer.begin(self, self._prompt)

    def _prompt_of(self, text: str, messages: list[Message]) -> list[int]:
        tokenizer = self.writer.lm.tokenizer
        if self.place is None:
            return list(tokenizer(text)["input_ids"]) if self.raw else opening(tokenizer, messages)
        tokens = self.turns[-1].tokens
        last = tokens[-1] if tokens and tokens[-1] in self.writer.lm.ends else None
        return following(tokenizer, messages, last)

    def hear(self, new: list[int], finish: Finish | None) -> None:
        """The writer has written ``new`` tokens; ``finish``: they are the last."""
        if new:
            self._steps.append(new)
        self._tell(self._text.push(new))
        if finish is not None:
            self._tell(self._text.close())
            seconds = time.perf_counter() - self._began
            turn = Turn(
                self._said,
                len(self._prompt),
                list(self.answer.tokens),
                finish,
                self.statistics,
                seconds,
                self._first or seconds,
                self.cached,
            )
            self.turns.append(turn)
            self.messages = [*self.messages, {"role": "assistant", "content": self._said}]
            self.writing = False

    def _tell(self, piece: str) -> None:
        if piece:
            self._first = self._first or time.perf_counter() - self._began
            self._said += piece
            self._pieces.append(piece)

    def take(self) -> list[str]:
        """The pieces of text that have become sure since the last call."""
        pieces = list(self._pieces)
        self._pieces.clear()
        return pieces

    def take_steps(self) -> list[list[int]]:
        """The tokens that each forward has made sure since the last call; all but the last of a step were drafted."""
        steps = list(self._steps)
        self._steps.clear()
        return steps

    def cancel(self) -> None:
        """Stop the answer: what has been written counts as said. A question that has not been read whole is taken
        back."""
        if self.writing and self.writer.stop(self):
            self.hear([], Finish("cancelled"))
        elif self.writing:
            self.messages, self.writing = self.messages[:-1], False

    def close(self) -> None:
        """The conversation is over: its row may be taken by another."""
        self.cancel()
        self.closed = True
        self.writer.leave(self)


@dataclass
class Writer:
    """Writes the answers of many conversations with ``lm``, drafted by ``rule``: one step of all of them at a time.

    Conversations that want no drafts are written by a second writer (``_plain``), so that they cost what they would
    without a head.
    """

    lm: TextLM
    rule: DecodingRule = field(default_factory=Vanilla)
    chunk: int = CHUNK
    _run: TextRun | None = None
    _placed: dict[int, Conversation] = field(default_factory=dict)
    _asking: list[Conversation] = field(default_factory=list)
    _writing: list[Conversation] = field(default_factory=list)
    _plain: Writer | None = None
    _cache: PromptCache = field(default_factory=PromptCache)

    def converse(
        self,
        sampling: Sampling = GREEDY,
        max_new_tokens: int = 256,
        stops: tuple[str, ...] = (),
        raw: bool = False,
        drafting: bool = True,
    ) -> Conversation:
        """A new conversation. ``raw`` reads the first text as it is, without the chat template."""
        if not drafting and self._plain is None:
            self._plain = Writer(self.lm, chunk=self.chunk)
        writer = self if drafting or self._plain is None else self._plain
        return Conversation(writer, sampling, Answer(max_new_tokens, tuple(stops)), raw)

    def run_of(self, conversation: Conversation) -> TextRun:
        """The run of all conversations, begun with an empty place at the first."""
        if self._run is None:
            rows = self.lm.open(1)
            rows.sampling = RowSampling([conversation.sampling], self.lm.device)
            self._run = TextRun(self.lm, TextLaw(self.lm), rows, self.rule, answers=[None])
            self._run.leave(0)
        return self._run

    def begin(self, conversation: Conversation, prompt: list[int]) -> None:
        """A prompt of ``conversation`` shall be read and answered."""
        run, place = self.run_of(conversation), conversation.place
        conversation.cached = conversation.stem = 0
        if place is None:
            row = self._row_that_begins(conversation, prompt)
        else:
            row = run.resumed(place)
            conversation.read = conversation.answer.context if int(row.lengths[0]) else []
        known = conversation.answer.context if place is not None else []
        rest = [*known, *prompt][len(conversation.read) :]
        conversation.reading = row
        stem = max(0, conversation.stem - len(conversation.read))
        parts = (rest[:stem], rest[stem:])
        conversation.unread = deque(p[i : i + self.chunk] for p in parts for i in range(0, len(p), self.chunk))
        self._asking.append(conversation)

    def _row_that_begins(self, conversation: Conversation, prompt: list[int]) -> Any:
        """A row for a new conversation, which has perhaps read the beginning of ``prompt`` already."""
        conversation.cached, row = self._cache.find(prompt)
        conversation.stem = self._cache.stem(prompt)
        conversation.read = prompt[: conversation.cached]
        if row is None:
            return self.run_of(conversation).opened(conversation.sampling)
        row.sampling = RowSampling([conversation.sampling], self.lm.device)
        return row

    def step(self) -> bool:
        """Read one piece of a prompt, and write one step of every answer; whether there was anything to do."""
        worked = self._read_one()
        if self._run is not None and self._writing:
            places = {c.place for c in self._writing}
            new = self._run.advance([b in places for b in range(len(self._run.finish))])
            for conversation in list(self._writing):
                self._hand_out(conversation, new)
            worked = True
        return (self._plain is not None and self._plain.step()) or worked

    def _read_one(self) -> bool:
        if not self._asking:
            return False
        conversation = self._asking[0]
        run = self.run_of(conversation)
        piece = conversation.unread.popleft()
        run.told(conversation.reading, piece)
        conversation.read = [*conversation.read, *piece]
        if not conversation.unread or len(conversation.read) == conversation.stem:
            self._cache.keep(conversation.read, conversation.reading)
        if not conversation.unread:
            self._asking.pop(0)
            prompt = conversation._prompt
            conversation.place = run.enter(conversation.reading, conversation.answer, prompt, conversation.place)
            conversation.reading = None
            self._placed[conversation.place] = conversation
            self._writing.append(conversation)
        return True

    def _hand_out(self, conversation: Conversation, new: list[list[int]] | None) -> None:
        assert self._run is not None
        assert conversation.place is not None
        place = conversation.place
        finish = self._run.finish[place]
        if finish is not None:
            self._writing.remove(conversation)
            conversation.statistics = self._run.counts[place]
        conversation.hear([] if new is None else new[place], finish)

    def stop(self, conversation: Conversation) -> bool:
        """No more of the answer of ``conversation``; whether it had begun. Its row is as before the question if not."""
        if conversation in self._asking:
            self._asking.remove(conversation)
            conversation.reading, conversation.unread = None, deque()
        if conversation not in self._writing:
            return False
        self._writing.remove(conversation)
        assert self._run is not None
        assert conversation.place is not None
        self._run.finish[conversation.place] = Finish("cancelled")
        conversation.statistics = self._run.counts[conversation.place]
        return True

    def cancel_all(self) -> None:
        """Cancel every answer."""
        for conversation in [*self._asking, *self._writing]:
            conversation.cancel()
        if self._plain is not None:
            self._plain.cancel_all()

    def leave(self, conversation: Conversation) -> None:
        """The conversation's row goes."""
        if self._run is not None and conversation.place is not None:
            self._keep_row(self._run, conversation.place, conversation.answer)
            self._run.leave(conversation.place)
            self._run.answers[conversation.place] = None
            del self._placed[conversation.place]
            conversation.place = None
            self._close_gaps(self._run)

    def _keep_row(self, run: TextRun, place: int, answer: Answer) -> None:
        """Whoever goes on with this conversation need not have it read again."""
        row = run.alone(place)
        if int(row.lengths[0]) == len(answer.context):
            self._cache.keep(answer.context, row)

    def _close_gaps(self, run: TextRun) -> None:
        if run.is_sparse:
            self._placed = {b: self._placed[old] for b, old in enumerate(run.gather())}
            for b, conversation in self._placed.items():
                conversation.place = b
