"""Sentence splitting: the same offline and streamed, no word lost, no cut inside abbreviations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech_mtp.text.split import SentenceBuffer, Word, joined, split_sentences
from tests.growth import assert_linear

fragments = st.sampled_from(
    [
        "Dr.",
        "Hello",
        "world.",
        "no.",
        "5",
        "U.S.",
        "why?",
        '"Yes!"',
        "...",
        "and",
        "so,",
        "\n",
        "\n\n",
        "- item",
        "3.5",
        "é",
        "-",
        "(ok).",
    ]
)
texts = st.one_of(
    st.text(max_size=80),
    st.lists(fragments, max_size=40).map(" ".join),
    st.text(alphabet=" .?!\n\"'aB1-,", max_size=60),
)


@given(texts, st.data(), st.sampled_from([5, 20, 220]))
def test_any_chunking_equals_the_offline_split(text: str, data: st.DataObject, max_chars: int) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=12)))
    buffer = SentenceBuffer(max_chars)
    streamed: list[Word] = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        streamed += buffer.push(text[start:end])
    assert joined(streamed + buffer.flush()) == split_sentences(text, max_chars)
    whole = SentenceBuffer(max_chars)
    assert streamed + buffer.flush() == (whole.push(text) + whole.flush())[: len(streamed)]


@given(texts)
def test_one_character_at_a_time_equals_the_offline_split(text: str) -> None:
    buffer = SentenceBuffer(30)
    assert joined([w for c in text for w in buffer.push(c)] + buffer.flush()) == split_sentences(text, 30)


@given(texts, st.sampled_from([5, 20, 220]))
def test_no_word_is_lost_and_no_sentence_is_too_long(text: str, max_chars: int) -> None:
    def words(of: str) -> list[str]:
        return [w for w in of.split() if any(c.isalnum() for c in w)]

    sentences = split_sentences(text, max_chars)
    assert words(" ".join(sentences)) == words(text)
    assert all(len(s) <= max_chars or 2 * max(map(len, s.split())) > max_chars for s in sentences)
    assert all(any(c.isalnum() for c in s) for s in sentences)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello there. How are you? Fine!", ["Hello there.", "How are you?", "Fine!"]),
        ("Dr. Smith met Mrs. Jones. They spoke.", ["Dr. Smith met Mrs. Jones.", "They spoke."]),
        ("It costs 3.50 dollars. Cheap.", ["It costs 3.50 dollars.", "Cheap."]),
        ("J. R. R. Tolkien wrote it. I read it.", ["J. R. R. Tolkien wrote it.", "I read it."]),
        ("So do I. You too.", ["So do I.", "You too."]),
        ("See No. 5 first. No. I will not.", ["See No. 5 first.", "No.", "I will not."]),
        (
            "We met at 7 p.m. in the U.S. embassy. Then we left.",
            ["We met at 7 p.m. in the U.S. embassy.", "Then we left."],
        ),
        ("We met at 7 p.m. Then we left.", ["We met at 7 p.m.", "Then we left."]),
        ("Fruit, e.g. Apples, etc. are good.", ["Fruit, e.g. Apples, etc. are good."]),
        ('"Really?" she asked. "Yes." He left.', ['"Really?" she asked.', '"Yes."', "He left."]),
        ("Well... maybe. Or not... Who knows?", ["Well... maybe.", "Or not...", "Who knows?"]),
        ("hi there! how are you? ok. fine", ["hi there!", "how are you?", "ok.", "fine"]),
        ("1. Wash it. 2. Dry it.", ["1. Wash it.", "2. Dry it."]),
        ("A title\n\nThe text goes\non here", ["A title", "The text goes on here"]),
        ("Buy:\n- milk\n- eggs", ["Buy:", "- milk", "- eggs"]),
        ("visit example.com. Now.", ["visit example.com.", "Now."]),
        ("  ... ", []),
        ("", []),
    ],
)
def test_where_sentences_end(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


def test_a_word_comes_out_with_the_first_letter_after_it() -> None:
    buffer = SentenceBuffer()
    assert buffer.push("Hello there.") == [Word("Hello", False)]
    assert buffer.push(" ") == []
    assert buffer.push("H") == [Word("there.", True)]
    assert buffer.push("ow") == []
    assert buffer.flush() == [Word("How", True)]
    assert buffer.flush() == []


def test_a_long_sentence_is_held_back_where_it_might_be_cut_and_no_earlier() -> None:
    buffer = SentenceBuffer(50)
    free = [word.text for word in buffer.push("one two three four five six, seven eight nine ")]
    assert free == ["one", "two", "three", "four", "five"]
    assert buffer.push("ten. Then") == [
        *(Word(t, False) for t in ("six,", "seven", "eight", "nine")),
        Word("ten.", True),
    ]
    buffer.push(" two three four five six, seven eight nine ten")
    assert buffer.push(" eleven twelve")[0] == Word("six,", True)


def test_long_sentences_are_cut_at_clauses_then_conjunctions_then_spaces() -> None:
    assert split_sentences("one two three four, five six seven", 25) == ["one two three four,", "five six seven"]
    assert split_sentences("one two three and five six seven", 25) == ["one two three", "and five six seven"]
    assert split_sentences("a, two three and five, six seven", 25) == ["a, two three and five,", "six seven"]
    assert split_sentences("one two three four five six", 14) == ["one two three", "four five six"]
    assert split_sentences("x" * 40 + " y", 14) == ["x" * 40, "y"]


def test_room_for_no_character_is_refused() -> None:
    with pytest.raises(ValueError, match="max_chars is 0"):
        SentenceBuffer(0)


@pytest.mark.parametrize("text", ["." * 10_000, "a." * 5_000, "(" * 10_000, " " * 10_000, "a " * 5_000, "'." * 5_000])
def test_adversarial_text_takes_no_longer_than_ordinary_text(text: str) -> None:
    assert_linear(split_sentences, text)
