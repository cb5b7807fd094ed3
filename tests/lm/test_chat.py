"""Conversations as tokens, and answers as text while they grow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech_mtp.lm.chat import StopSearch, TextStream, following, opening, openings
from tests.lm.tiny import tiny_tokenizer

TOKENIZER = tiny_tokenizer()
USER = {"role": "user", "content": "Hello there!"}


def streamed(tokens: list[int], size: int, stops: tuple[str, ...] = ()) -> list[str]:
    stream = TextStream(TOKENIZER, stops)
    pieces = [stream.push(tokens[i : i + size]) for i in range(0, len(tokens), size)]
    return [*pieces, stream.close()]


def text_of(tokens: list[int], stops: tuple[str, ...] = ()) -> str:
    text = TOKENIZER.decode(tokens, skip_special_tokens=True)
    # Character by character, the row ends as soon as a stop string is complete.
    ends = [(n, stop) for n in range(len(text) + 1) for stop in stops if text[:n].endswith(stop)]
    first = [n - len(stop) for n, stop in ends if n == ends[0][0]]
    return text[: min(first, default=len(text))]


def test_a_prompt_is_read_in_the_chat_format_and_once() -> None:
    assert TOKENIZER.decode(opening(TOKENIZER, [USER])) == (
        "<|im_start|>user\nHello there!<|im_end|>\n<|im_start|>assistant\n"
    )


def test_many_prompts_are_read_as_each_alone() -> None:
    prompts = ["Hello there!", "the fox", "Hello there! <|im_end|>"]
    for tokenizer in (TOKENIZER, tiny_tokenizer(None)):
        alone = [opening(tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]
        assert openings(tokenizer, prompts) == alone
    assert openings(TOKENIZER, []) == []


def test_without_a_chat_format_a_prompt_is_plain_and_a_conversation_is_refused() -> None:
    plain = tiny_tokenizer(chat=None)
    assert plain.decode(opening(plain, [USER])) == "Hello there!"
    with pytest.raises(ValueError, match="no chat template"):
        opening(plain, [USER, USER])
    with pytest.raises(ValueError, match="no chat template"):
        following(plain, [USER, USER, USER], None)


@pytest.mark.parametrize("closed", [False, True])
def test_the_next_turn_goes_on_where_the_answer_ended(closed: bool) -> None:
    said = {"role": "assistant", "content": " strip me? "}
    messages = [USER, said, {"role": "user", "content": "Good morning."}]
    end = TOKENIZER.eos_token_id
    answer = TOKENIZER(said["content"])["input_ids"] + ([end] if closed else [])
    tokens = opening(TOKENIZER, [USER]) + answer + following(TOKENIZER, messages, end if closed else None)
    assert tokens == opening(TOKENIZER, messages)


@given(st.text(st.characters(codec="utf-8"), max_size=20), st.integers(1, 4))
def test_pieces_are_whole_characters_and_together_the_text(text: str, size: int) -> None:
    tokens = TOKENIZER(text)["input_ids"]
    pieces = streamed(tokens, size)
    assert "".join(pieces) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)


@given(st.lists(st.integers(0, 299), max_size=40), st.integers(1, 5))
def test_any_tokens_give_the_text_of_all_at_once(tokens: list[int], size: int) -> None:
    assert "".join(streamed(tokens, size)) == text_of(tokens)


def test_text_comes_as_soon_as_its_last_byte_is_there() -> None:
    tokens = TOKENIZER("aüb")["input_ids"]
    assert len(tokens) == 4
    assert streamed(tokens, 1) == ["a", "", "ü", "b", ""]


@given(st.text("ab<>", max_size=12), st.integers(1, 3), st.lists(st.text("ab<>", min_size=1, max_size=4), max_size=3))
def test_nothing_is_told_from_a_stop_string_on(text: str, size: int, stops: list[str]) -> None:
    assert "".join(streamed(TOKENIZER(text)["input_ids"], size, tuple(stops))) == text_of(
        TOKENIZER(text)["input_ids"], tuple(stops)
    )


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    assert streamed(TOKENIZER("xay", add_special_tokens=False)["input_ids"], 1, ("ab",)) == ["x", "", "ay", ""]
    assert streamed(TOKENIZER("xa")["input_ids"], 1, ("ab",)) == ["x", "", "a"]


@given(
    st.lists(st.integers(0, 299), min_size=1, max_size=30),
    st.lists(st.text("abh \ufffdü", min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_a_stop_string_is_found_at_the_token_that_completes_it(tokens: list[int], stops: list[str]) -> None:
    search = StopSearch(TOKENIZER, stops)
    wholes = [TOKENIZER.decode(tokens[: n + 1], skip_special_tokens=True) for n in range(len(tokens))]
    first = next((n for n, whole in enumerate(wholes) if any(stop in whole for stop in stops)), len(tokens))
    assert [search.push(token) for token in tokens[: first + 1]] == [
        n == first for n in range(len(tokens[: first + 1]))
    ]


def test_a_long_answer_is_not_decoded_anew_for_every_token() -> None:
    decoded: list[int] = []

    class Counting:
        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            decoded.append(len(ids))
            return str(TOKENIZER.decode(ids, skip_special_tokens=skip_special_tokens))

    tokens = TOKENIZER("the quick brown fox jumps over the lazy dog. " * 20)["input_ids"]
    search = StopSearch(Counting(), ["never said"])
    assert not any(search.push(token) for token in tokens)
    assert sum(decoded) < 5 * len(tokens)
