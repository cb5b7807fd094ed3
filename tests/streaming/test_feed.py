"""Pieces of text: together they are the normalised sentences, however the text was cut."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_mtp.streaming.feed import MAX_SEGMENT, Feed, Segments, joined, pieces_of, sentences
from speech_mtp.text.split import Word

TEXTS = [
    "Dr. Miller can see you on Tuesday at half past two. My sister was born on March 3rd, 1998.",
    "Turn left at St. James Street, then go straight for 200 m. Good morning!",
    "It costs $12.50, but you can pay later. The train leaves at 9:45 from platform 3.",
]


def closed(pieces: list[str]) -> list[str]:
    """The sentences that a feed makes of ``pieces``."""
    gained = list(pieces_of(pieces))
    assert gained[-1][-1].end, "the last sentence was left open"
    return list(joined(gained))


@given(text=st.sampled_from(TEXTS), cuts=st.lists(st.integers(0, 88), max_size=20))
@settings(max_examples=80)
def test_the_pieces_are_the_sentences(text: str, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    assert closed([text[a:b] for a, b in itertools.pairwise(edges)]) == sentences(text)


@pytest.mark.parametrize("text", TEXTS)
def test_letter_by_letter(text: str) -> None:
    assert closed(list(text)) == sentences(text)


def test_words_come_before_the_sentence_ends() -> None:
    pieces = Feed().push("the quick brown fox jumps over 12 ")
    assert [piece.text for piece in pieces] == ["the", " quick", " brown", " fox", " jumps"]
    assert not any(piece.end for piece in pieces)


def test_what_may_be_read_together_waits() -> None:
    feed = Feed()
    assert [piece.text for piece in feed.push("it took him 5 ")] == ["it", " took"]
    assert [piece.text for piece in feed.push("km ")] == []
    assert [piece.text for piece in feed.push("and then ")] == [" him five kilometers and"]
    assert [piece.text for piece in feed.push("he slept ")] == [" then", " he"]


def test_what_may_be_read_together_waits_for_so_many_words_at_most() -> None:
    segments = Segments()
    runs = [run for _ in range(2 * MAX_SEGMENT + 1) for run, _ in segments.push(Word("5", False))]
    assert [len(run.split()) for run in runs] == [MAX_SEGMENT] * 2


def test_a_long_sentence_is_closed_at_a_clause_end_and_loses_no_word() -> None:
    words = [f"word{chr(97 + i % 26)}," if i % 7 == 6 else f"word{chr(97 + i % 26)}" for i in range(200)]
    done = closed([word + " " for word in words])
    assert len(done) > 2
    assert " ".join(done).replace(",", "").split() == [word.strip(",") for word in words]


def test_too_long_a_stream_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than 10000"):
        closed(["word "] * 2001)


GERMAN = "Guten Morgen, ich habe heute leider keine Zeit und kann nicht mit dir in die Stadt fahren. " * 4


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_another_language_is_refused_as_soon_as_it_is_told(size: int) -> None:
    taken: list[str] = []

    def arriving() -> Iterator[str]:
        for at in range(0, len(GERMAN), size):
            taken.append(GERMAN[at : at + size])
            yield taken[-1]

    with pytest.raises(ValueError, match="German"):
        list(pieces_of(arriving()))
    assert len("".join(taken)) <= 204 + size
    with pytest.raises(ValueError, match="German"):
        sentences(GERMAN)


def test_markdown_is_read_as_it_arrives() -> None:
    text = "# Plans\n\n1. **Wash** it\n2. Dry `it`\n\nSee [the page](https://x.org/a)."
    assert closed([text]) == closed(list(text)) == ["Plans.", "one, Wash it.", "two, Dry it.", "See the page."]
