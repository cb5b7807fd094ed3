"""Kinds of written English, each with the ways to speak it (spoken_pairs.tsv), and the cuts between segments."""

from __future__ import annotations

import re
from itertools import islice, pairwise
from pathlib import Path

import pytest

from speech_mtp.text.markup import plain
from speech_mtp.text.normalize import joins, normalize
from speech_mtp.text.split import split_sentences

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
    found = sentence.split()
    parts = [[found[0]]]
    for before, word in pairwise(found):
        if joins(before) or joins(word):
            parts[-1].append(word)
        else:
            parts.append([word])
    return [" ".join(part) for part in parts]


def test_segments_of_a_sentence_are_read_as_the_sentence_is() -> None:
    sentences = [s for written, _ in PAIRS for s in split_sentences(plain(written))]
    sentences += (CORPUS / "dev_sentences.txt").read_text("utf-8").splitlines()
    with (CORPUS / "sentences.txt").open(encoding="utf-8") as file:
        sentences += [line.strip() for line in islice(file, 2000)]
    differ = [s for s in sentences if " ".join(map(normalize, segments(s))) != normalize(s)]
    assert differ == []


@pytest.mark.parametrize("word", ["house", "walked", "Therefore,", "don't", "I"])
def test_plain_words_do_not_join(word: str) -> None:
    assert not joins(word)


@pytest.mark.parametrize("word", ["5", "Dr.", "km", "NASA", "May", "Henry", "to", "no", "$5", "e.g.", "(ok)", "A-Z"])
def test_words_of_rules_join(word: str) -> None:
    assert joins(word)
