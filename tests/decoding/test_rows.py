"""Rows that come and go: whatever else is decoded beside it, and when, a text is that of plain decoding alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch

from speech_mtp.decoding.base import DecodingRule
from speech_mtp.decoding.cascade import Cascade
from speech_mtp.decoding.chain import Chain
from speech_mtp.decoding.engine import LEFT, Statistics, total
from speech_mtp.decoding.laws import TextLaw
from speech_mtp.decoding.text import Answer, TextRun, start
from speech_mtp.decoding.tree import Tree
from speech_mtp.decoding.vanilla import Vanilla
from speech_mtp.types import Finish, Sampling
from tests.decoding.learned import foreseeable_lm, learned_head


@dataclass(frozen=True)
class Text:
    """A prompt with its answer, and a later turn of the same row. ``cut`` is where the row leaves in the last turn."""

    sampling: Sampling
    prompts: tuple[tuple[int, ...], ...]
    count: int
    cut: int | None = None


TEXTS = [
    Text(Sampling(temperature=0), ((5, 9, 2), (8,)), 12),
    Text(Sampling(temperature=0.8, top_p=0.9, seed=3), ((7, 7, 30, 1, 12, 4, 22),), 16),
    Text(Sampling(temperature=2.5, top_k=12, repetition_penalty=1.2, seed=3), ((3, 18), (2, 40, 6, 6)), 9),
    Text(Sampling(temperature=0, repetition_penalty=2.0), ((3,), (11, 12)), 7),
    Text(Sampling(temperature=3.0, top_p=0.9, seed=8), ((5, 9, 2, 5, 9, 2, 5, 9),), 20, cut=6),
]
RULES: dict[str, Callable[[], DecodingRule]] = {
    "vanilla": Vanilla,
    "chain": lambda: Chain(learned_head("medusa")),
    "tree": lambda: Tree(learned_head("eagle3")),
    "cascade": lambda: Cascade(learned_head("eagle3"), sure_ngram=2, max_ngram=3),
}


@cache
def alone() -> list[list[list[int]]]:
    """What plain decoding says in every turn of every text."""
    said = []
    for text in TEXTS:
        run = start(foreseeable_lm(), [text.prompts[0]], text.sampling, max_new_tokens=text.count)
        turns = [list(run.complete()[0])]
        for prompt in text.prompts[1:]:
            run.say([prompt])
            turns.append(list(run.complete()[0]))
        said.append(turns)
    return said


@dataclass
class Reading:
    """A row that is told a prompt piece by piece; ``place`` is the one it has had in an earlier turn."""

    row: Any
    prompt: tuple[int, ...]
    told: int = 0
    place: int | None = None


@dataclass
class Schedule:
    """Texts that are opened, told, entered, advanced, gathered and left at random."""

    run: TextRun
    chance: random.Random
    coming: list[int]
    reading: dict[int, Reading] = field(default_factory=dict)
    places: dict[int, int] = field(default_factory=dict)
    said: dict[int, list[list[int]]] = field(default_factory=dict)
    counts: list[Statistics] = field(default_factory=list)
    beside: int = 0

    def play(self) -> dict[int, list[list[int]]]:
        """Until every text has been answered: what was said in each turn."""
        while self.coming or self.reading or self.places:
            self.chance.choice(
                [self.open, self.tell, self.tell, self.advance, self.advance, self.advance, self.gather]
            )()
        return self.said

    def open(self) -> None:
        if self.coming:
            i = self.coming.pop()
            self.said[i] = []
            self.reading[i] = Reading(self.run.opened(TEXTS[i].sampling), TEXTS[i].prompts[0])

    def tell(self) -> None:
        if not self.reading:
            return
        i = self.chance.choice(sorted(self.reading))
        reading = self.reading[i]
        stop = self.chance.randint(reading.told + 1, len(reading.prompt))
        self.run.told(reading.row, reading.prompt[reading.told : stop])
        reading.told = stop
        if stop == len(reading.prompt):
            del self.reading[i]
            old = None if reading.place is None else self.run.answers[reading.place]
            answer = old or Answer(TEXTS[i].count)
            self.places[i] = self.run.enter(reading.row, answer, reading.prompt, reading.place)

    def advance(self) -> None:
        """A step of all rows, or of some."""
        only = [self.chance.random() < 0.7 for _ in self.run.finish] if self.chance.random() < 0.4 else None
        before = self.run.rows.place.position.tolist()
        if self.run.advance(only) is None:
            return
        moved = [a != b for a, b in zip(before, self.run.rows.place.position.tolist(), strict=True)]
        assert only is None or not any(on and not may for on, may in zip(moved, only, strict=True))
        self.beside = max(self.beside, sum(moved))
        for i, b in list(self.places.items()):
            self.look(i, b)

    def look(self, i: int, b: int) -> None:
        """Whether the turn of text ``i`` is over, or the text."""
        text, said, finish = TEXTS[i], self.run.tokens[b], self.run.finish[b]
        cut = text.cut is not None and len(said) >= text.cut
        if finish is None and not cut:
            return
        assert cut or (finish is not None and finish.reason == "length")
        del self.places[i]
        self.said[i].append(list(said))
        self.counts.append(self.run.counts[b])
        if len(self.said[i]) < len(text.prompts):
            self.reading[i] = Reading(self.run.resumed(b), text.prompts[len(self.said[i])], place=b)
        else:
            self.run.leave(b)

    def gather(self) -> None:
        old = self.run.gather()
        assert [finish == LEFT for finish in self.run.finish[: len(old)]] == [False] * len(old)
        assert len(self.run.finish) == len(self.run.answers) == self.run.rows.count
        self.places = {i: old.index(b) for i, b in self.places.items()}
        for reading in self.reading.values():
            reading.place = None if reading.place is None else old.index(reading.place)


def scheduled(rule: DecodingRule, seed: int) -> Schedule:
    lm, chance = foreseeable_lm(), random.Random(seed)
    run = TextRun(lm, TextLaw(lm), lm.open(1), rule, answers=[None])
    run.leave(0)
    return Schedule(run, chance, chance.sample(range(len(TEXTS)), len(TEXTS)))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(4))
def test_any_schedule_gives_every_text_that_it_has_alone(rule: str, seed: int) -> None:
    schedule = scheduled(RULES[rule](), seed)
    said = schedule.play()
    for i, text in enumerate(TEXTS):
        expected = [list(turn) for turn in alone()[i]]
        if text.cut is not None:
            assert len(said[i][-1]) >= text.cut
            expected[-1] = expected[-1][: len(said[i][-1])]
        assert said[i] == expected, f"text {i}"
    assert schedule.beside > 1, "rows run beside each other"
    counts = total(schedule.counts)
    assert counts.emitted == sum(len(turn) for turns in said.values() for turn in turns)
    if rule != "vanilla":
        assert min(counts.kept[:2]) > 0


def test_a_place_that_was_left_is_taken_again_and_what_was_there_is_forgotten() -> None:
    rule = Tree(learned_head("eagle3"))
    schedule = scheduled(rule, 0)
    run = schedule.run

    def entered(text: Text) -> int:
        row = run.opened(text.sampling)
        run.told(row, text.prompts[0])
        return run.enter(row, Answer(text.count), text.prompts[0])

    first, second = (entered(TEXTS[i]) for i in (3, 1))
    assert (first, second, len(run.finish)) == (0, 1, 2)
    run.advance()
    assert run.statistics.forwards == 2
    run.leave(first)
    assert run.statistics.forwards == 1
    assert entered(TEXTS[2]) == first
    third = entered(TEXTS[0])
    assert (third, len(run.finish)) == (2, 4)
    run.complete()
    assert [run.tokens[b] for b in (first, second, third)] == [alone()[i][0] for i in (2, 1, 0)]
    run.leave(first)
    assert run.gather() == [second, third]
    assert run.tokens == [alone()[1][0], alone()[0][0]]
    assert [finish is not None and finish.reason for finish in run.finish] == ["length", "length"]


def test_a_run_of_rows_that_have_all_left_has_nothing_to_do() -> None:
    schedule = scheduled(Vanilla(), 0)
    assert schedule.run.advance() is None
    assert schedule.run.gather() == []
    assert schedule.run.advance() is None
    assert torch.equal(schedule.run.rows.place.position, torch.zeros(1, dtype=torch.long))


class Spelling:
    """A tokenizer whose tokens are single characters."""

    eos_token_id = None

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return "".join(chr(ord("0") + token) for token in ids)


def test_a_row_that_a_stop_string_cut_short_goes_on_from_what_it_said(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, greedy, spelled = foreseeable_lm(), Sampling(temperature=0), Spelling().decode
    monkeypatch.setattr(lm, "tokenizer", Spelling())
    prompt, later, count = [5, 9, 2], [8], 14
    whole = start(lm, [prompt], greedy, max_new_tokens=count).complete()[0]
    told_again = 0
    for at in range(1, 9):
        stop = spelled(whole[at : at + 2])
        said = whole[: spelled(whole).index(stop) + 2]
        run, answer = scheduled(Tree(learned_head("eagle3")), 0).run, Answer(count, (stop,))
        row = run.opened(greedy)
        run.told(row, prompt)
        b = run.enter(row, answer, prompt)
        assert run.complete()[b] == said
        assert run.finish[b] == Finish("stop", "stop string")
        assert run.text(b) == spelled(said[:-2])
        assert run.counts[b].emitted == len(said)
        row = run.resumed(b)
        known = [] if int(row.lengths[0]) else answer.context
        told_again += bool(known)
        run.told(row, known + later)
        run.enter(row, answer, later, b)
        fresh = start(lm, [prompt + said + later], greedy, max_new_tokens=count, stops=(stop,))
        assert run.complete()[b] == fresh.complete()[0]
    assert 0 < told_again < 8, "the cache holds more than was said, or just that"
