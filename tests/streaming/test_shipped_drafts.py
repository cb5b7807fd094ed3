"""The shipped talker on held-out sentences: drafted by any head, and eight streams at once, its codes are the same."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from speech_mtp import hub, plugins
from speech_mtp.decoding.base import DecodingRule
from speech_mtp.heads.base import Binding, MTPHead, TrunkShape
from speech_mtp.lm.bundle import SpeechModel
from speech_mtp.streaming.scheduler import Scheduler, run_to_end
from speech_mtp.streaming.stream import Stream

DEV = Path(__file__).parents[2] / "recipes/corpus/dev_sentences.txt"
SENTENCES = DEV.read_text(encoding="utf-8").splitlines()[::11][:50]
FEW = SENTENCES[:2]


@cache
def shipped() -> SpeechModel:
    model: SpeechModel = hub.load()
    return model


def untrained(head: str, rule: str) -> DecodingRule:
    """A rule with a random head on the shipped talker, whose output layer reads the head's states."""
    lm: Any = shipped().lm
    torch.manual_seed(0)
    built: MTPHead = plugins.build("heads", head, shape=TrunkShape(**lm.shape()))
    built.bind(Binding(**lm.binding()))
    drafting: DecodingRule = plugins.build("decoding", rule, head=built.eval())
    return drafting


def codes(texts: list[str], at_once: int = 1, rule: DecodingRule | None = None) -> list[Tensor]:
    """The groups ``[1, T, C]`` of every text, ``at_once`` streams at a time."""
    found: dict[Stream, list[Tensor]] = {}
    take = Stream.say

    def listen(stream: Stream, tokens: Tensor, pointers: list[int]) -> None:
        found.setdefault(stream, []).append(tokens)
        take(stream, tokens, pointers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Stream, "say", listen)
        scheduler = Scheduler(shipped(), rule=rule, max_streams=at_once)
        streams = []
        for text in texts:
            streams.append(scheduler.speak())
            streams[-1].push(text)
            streams[-1].finish_text()
        run_to_end(scheduler)
    return [torch.cat(found[stream], 1) for stream in streams]


plain = cache(lambda count: codes(SENTENCES[:count]))
DRAFTS = [("medusa", "chain"), ("medusa", "tree"), ("leap", "leap")]


def same(found: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, plain(len(found)), strict=True))


def test_two_streams_at_once_say_what_each_says_alone() -> None:
    assert same(codes(FEW, at_once=2))


def test_drafts_leave_two_sentences_as_they_are() -> None:
    assert same(codes(FEW, rule=untrained("leap", "leap")))


@pytest.mark.slow  # a minute, on two cores
def test_eight_streams_at_once_say_what_each_says_alone() -> None:
    assert same(codes(SENTENCES, at_once=8))


@pytest.mark.slow  # some minutes each
@pytest.mark.parametrize(("head", "rule"), DRAFTS)
def test_drafts_leave_the_codes_as_they_are(head: str, rule: str) -> None:
    assert same(codes(SENTENCES, rule=untrained(head, rule)))
