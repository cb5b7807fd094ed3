"""Kinds of written English, each with the ways to speak it (spoken_pairs.tsv), and the cuts between segments."""

from __future__ import annotations

import re
from itertools import islice, pairwise
from pathlib import Path

import pytest

from speech_mtp.streaming.feed import Segments, pieces_of
from speech_mtp.text.markup import plain
from speech_mtp.text.normalize import normalize
from speech_mtp.text.split import Word, split_sentences

HERE = Path(__file__).parent
CORPUS = HERE.parents[1] / "recipes" / "corpus"
ROWS = [line.split("\t") for line in (HERE / "spoken_pairs.tsv").read_text("utf-8").splitlines()[1:]]
PAIRS = [(written.replace("\\n", "\n"), spoken.split(" | ")) for written, spoken in ROWS]


def words(text: str) -> str:
    """Case and punctuation left out, letters that stand alone joined."""
    bare = " ".join(re.sub(r"[^\w' ]", " ", text.lower()).split())
    return re.sub(r"\b([a-z]) (?=[a-z]\b(?!'))", r"\1", bare)


@pytest.mark.parametrize(("written", "spoken"), PAIRS, ids=[written for written, _ in PAIRS])
def test_every_kind_is_spoken_as_people_do(written: str, spoken: list[str]) -> None:
    read = " ".join(normalize(sentence) for sentence in split_sentences(plain(written)))
    assert words(read) in [words(one) for one in spoken]


def segments(sentence: str) -> list[str]:
    """The runs that are read together, as text that arrives is cut."""
    runs = Segments()
    words = [Word(word, False, after[0]) for word, after in pairwise(sentence.split())]
    words.append(Word(sentence.split()[-1], last=True))
    return [run for word in words for run, _ in runs.push(word)]


def test_segments_of_a_sentence_are_read_as_the_sentence_is() -> None:
    sentences = [s for written, _ in PAIRS for s in split_sentences(plain(written))]
    sentences += (CORPUS / "dev_sentences.txt").read_text("utf-8").splitlines()
    with (CORPUS / "sentences.txt").open(encoding="utf-8") as file:
        sentences += [line.strip() for line in islice(file, 2000)]
    differ = [s for s in sentences if " ".join(map(normalize, segments(s))) != normalize(s)]
    assert differ == []


@pytest.mark.parametrize(
    "text",
    [
        "the house",
        "Therefore, he",
        "walked to the end of a road",
        "you may go or stay",
        'so he said, "Yes," and left',
        "a well-known man",
        "the FBI is here",
        "no art is",
        "A man and an hour",
    ],
)
def test_every_plain_word_is_read_by_itself(text: str) -> None:
    assert segments(text) == text.split()


@pytest.mark.parametrize(
    "text",
    [
        "the 5th of May",
        "Dr Lee",
        "20 sq ft",
        "a $5 million house",
        "3 x 10 to the 6th",
        "War II",
        "Henry Tudor I",
        "Part I think",
        "Austin, TX",
        "STOP THAT",
        "Mon and Fri",
        "well (ok) then",
        "grades A-Z only",
        "Roe v. Wade",
        "rock n' roll",
    ],
)
def test_words_that_a_rule_reads_together_stay_together(text: str) -> None:
    assert segments(text) == [text]


def test_the_first_words_are_read_early() -> None:
    waits = []
    for line in (CORPUS / "dev_sentences.txt").read_text("utf-8").splitlines():
        pushed = pieces_of(f" {word}" for word in line.split())
        waits.append(next(i for i, pieces in enumerate(pushed, 1) if any(piece.text for piece in pieces)))
    assert sum(waits) / len(waits) < 2.1
    assert max(waits) <= 3
