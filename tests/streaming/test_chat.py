"""Text in, text out: later turns read only what is new, and say what a fresh reading of everything says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from speech_mtp.decoding import catalogue
from speech_mtp.decoding.text import start
from speech_mtp.lm.chat import opening
from speech_mtp.streaming.chat import Chat
from speech_mtp.types import Sampling
from tests.text_tiny import tiny_head, tiny_text_lm

GREEDY = Sampling(temperature=0)


def chat(drafting: bool = True, **settings: object) -> Chat:
    lm = tiny_text_lm()
    head = tiny_head(lm) if drafting else None
    return Chat(lm, catalogue.build("chain" if drafting else "vanilla", head), max_new_tokens=12, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("stopped", [False, True])
def test_a_second_turn_equals_reading_everything_again(stopped: bool) -> None:
    whole = "".join(chat().ask("Hello there!"))
    stops = (whole[4:6],) if stopped else ()
    talk = chat(stops=stops)
    first = "".join(talk.ask("Hello there!"))
    assert first == (whole[: whole.index(stops[0])] if stopped else whole)
    assert (len(talk.turns[0].tokens) < 12) == stopped
    second = "".join(talk.ask("Good morning."))
    one, two = talk.turns
    assert (one.text, two.text) == (first, second)
    assert two.prompt_tokens < one.prompt_tokens + len(one.tokens) + two.prompt_tokens
    history = opening(talk.lm.tokenizer, [{"role": "user", "content": "Hello there!"}]) + one.tokens
    marks = "" if one.tokens[-1] in talk.lm.ends else "<|im_end|>"
    more = f"{marks}\n<|im_start|>user\nGood morning.<|im_end|>\n<|im_start|>assistant\n"
    everything = history + talk.lm.tokenizer(more)["input_ids"]
    run = start(talk.lm, [everything], GREEDY, max_new_tokens=12, stops=stops)
    while run.advance() is not None:
        pass
    assert two.tokens == run.tokens[0]
    assert second == run.text(0)


def test_the_figures_of_a_turn_are_its_own() -> None:
    talk = chat(drafting=False)
    for text in ("Hello there!", "Good morning."):
        "".join(talk.ask(text))
    for turn in talk.turns:
        assert turn.statistics.forwards == turn.statistics.emitted == len(turn.tokens)
        assert turn.finish.reason in ("stop", "length")
        assert 0 < turn.first_text_s <= turn.seconds


def test_the_end_of_the_tokenizer_ends_an_answer_too() -> None:
    lm = tiny_text_lm()
    lm.model.generation_config.eos_token_id = None
    assert lm.ends == {lm.tokenizer.eos_token_id}
    lm.model.generation_config.eos_token_id = [7, 9]
    assert lm.ends == {lm.tokenizer.eos_token_id, 7, 9}


def test_the_first_text_is_timed_when_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def clock() -> float:
        now[0] += 1e-6
        return now[0]

    monkeypatch.setattr("speech_mtp.streaming.conversation.time", SimpleNamespace(perf_counter=clock))
    talk = chat()
    pieces = 0
    for _ in talk.ask("Hello there!"):  # whoever shows the text takes a second for each piece
        now[0] += 1.0
        pieces += 1
    assert talk.turns[0].first_text_s < 1
    assert talk.turns[0].seconds > 1
    assert pieces > 1


def test_a_conversation_longer_than_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match="the model reads 512"):
        next(chat(drafting=False).ask("the quick brown fox " * 200))
