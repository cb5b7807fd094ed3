"""Prompts that begin alike: what is read once, what is kept, and that answers are the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from speech_mtp.decoding import catalogue
from speech_mtp.lm.chat import Message
from speech_mtp.streaming.authors import OwnAuthor, Wish
from speech_mtp.streaming.conversation import Conversation, Writer
from speech_mtp.streaming.prompt_cache import LEAST, PromptCache
from speech_mtp.streaming.scheduler import Scheduler
from tests.text_tiny import tiny_head, tiny_text_lm

LM = tiny_text_lm()
HEAD = tiny_head(LM)
AUTHOR = OwnAuthor("tiny", LM.tokenizer, LM.max_positions)
SYSTEM: Message = {"role": "system", "content": "You are of few words, and all of them are true."}


def asked(writer: Writer, *turns: str, tokens: int = 12) -> Conversation:
    """A history, question and answer in turn, that is to be answered."""
    roles = ("user", "assistant")
    messages: list[Message] = [SYSTEM, *({"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns))]
    question = AUTHOR.prepare(messages, Wish())
    conversation = writer.converse(max_new_tokens=tokens)
    conversation.continue_from(question.messages, list(question.prompt))
    return conversation


def answered(conversation: Conversation, close: bool = True) -> str:
    while conversation.writing:
        conversation.writer.step()
    text = "".join(conversation.take())
    if close:
        conversation.close()
    return text


def fresh() -> Writer:
    return Writer(LM, catalogue.build("chain", HEAD))


def test_answers_are_those_of_a_writer_that_has_read_nothing() -> None:
    writer = fresh()
    said: list[str] = []
    for question in ("Hello there!", "And who are you?", "Is it so?"):
        said.append(question)
        conversation = asked(writer, *said)
        text = answered(conversation)
        assert text == answered(asked(fresh(), *said))
        assert (conversation.turns[0].cached_tokens > LEAST) == (len(said) > 1)
        said.append(text)


def test_a_turn_that_was_interrupted_is_read_from_its_question_on() -> None:
    writer = fresh()
    first = asked(writer, "Hello there!", tokens=40)
    while len("".join(first.turns[0].text if first.turns else first._said)) < 8:
        writer.step()
    first.cancel()
    heard = first.turns[0].text[:4]
    first.close()
    said = ("Hello there!", heard, "Go on.")
    second = asked(writer, *said)
    assert second.cached >= len(AUTHOR.prepare([SYSTEM, {"role": "user", "content": "Hello there!"}], Wish()).prompt)
    assert answered(second) == answered(asked(fresh(), *said))


def test_what_all_begin_with_is_read_once() -> None:
    writer = fresh()
    questions = ("Hello there!", "What is it?", "Why so?")
    cached = []
    for question in questions:
        conversation = asked(writer, question)
        assert answered(conversation) == answered(asked(fresh(), question))
        cached.append(conversation.turns[0].cached_tokens)
    assert cached[:2] == [0, 0]  # the second one shows what they have in common
    assert cached[2] > LEAST


def test_two_at_once_from_the_same_beginning() -> None:
    writer = fresh()
    for question in ("Hello there!", "What is it?"):
        answered(asked(writer, question))
    one, two = asked(writer, "Why so?"), asked(writer, "Where is it then?")
    texts = [answered(one, False), answered(two, False)]
    assert texts == [answered(asked(fresh(), question)) for question in ("Why so?", "Where is it then?")]
    assert one.cached == two.cached > LEAST


class Row:
    """What is kept: something that can be copied."""

    def __init__(self, name: str) -> None:
        self.name, self.last = name, torch.zeros(1)

    def select(self, rows: Any) -> Row:
        return Row(self.name)


def test_no_more_is_kept_than_there_is_room_for() -> None:
    cache = PromptCache(most_tokens=100)
    for number in range(4):
        cache.keep([number] * 40, Row(str(number)))
    assert [cache.find([number] * 50)[0] for number in range(4)] == [0, 0, 40, 40]
    cache.find([2] * 50)
    cache.keep([4] * 40, Row("4"))  # the one that was not used for longest goes
    assert [cache.find([number] * 50)[0] for number in (2, 3, 4)] == [40, 0, 40]
    cache.keep([5] * (LEAST - 1), Row("5"))
    cache.keep([6] * 101, Row("6"))
    assert [cache.find([number] * 200)[0] for number in (5, 6)] == [0, 0]
    assert cache.find([2] * 40) == (0, None)  # something must be left to read


def test_a_kept_row_takes_no_more_room_than_its_tokens() -> None:
    writer = fresh()
    long = asked(writer, "word " * 25, tokens=2)
    answered(long, close=False)  # among whose rows those of others are as wide
    answered(asked(writer, "Hello there!"))
    assert len(writer._cache._rows) >= 2
    for tokens, row in writer._cache._rows.items():
        assert row.cache.size == len(tokens) - 1  # the newest is not in it yet


def test_the_longest_beginning_is_found() -> None:
    cache = PromptCache()
    for length in (20, 30, 60):
        cache.keep(range(length), Row(str(length)))
    length, row = cache.find(range(50))
    assert (length, row.name) == (30, "30")


@pytest.mark.parametrize("drafting", [True, False])
def test_a_scheduler_forgets_nothing_between_requests(drafting: bool) -> None:
    scheduler = Scheduler(None, fresh())
    for turn in range(2):
        question = AUTHOR.prepare(
            [SYSTEM, {"role": "user", "content": "Hello there!"}], Wish(max_tokens=6, drafting=drafting)
        )
        writing = AUTHOR.write(scheduler, question, lambda: None)
        while writing.writing:
            scheduler.tick()
        assert "".join(writing.take())
        outcome = writing.close()
        assert outcome.cached_tokens == 0 or turn == 1
