from __future__ import annotations

import random

import pytest

pytest.importorskip("wordfreq", reason="needs the train extra")

from speech_mtp.corpus.coverage import TEMPLATES, coverage_sentences, missing_words, speakable_word
from speech_mtp.corpus.sentences import SentenceRules, frequent_words, refusal, words_of


def test_every_word_is_carried_once_and_sentences_are_speakable() -> None:
    words = [word for word in frequent_words(700)[400:] if speakable_word(word)]
    words = words[: len(words) // 4 * 4 + 3]
    sentences = coverage_sentences(words, random.Random(0))
    assert len(sentences) == -(-len(words) // 4)
    spoken = [word for sentence in sentences for word in words_of(sentence)]
    assert set(words) <= set(spoken)
    assert [refusal(s, SentenceRules()) for s in sentences] == [None] * len(sentences)
    assert len({s.split()[0] for s in sentences}) > len(TEMPLATES) // 2


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_remainder_is_listed_naturally(count: int) -> None:
    (sentence,) = coverage_sentences(["garage", "menu", "violet", "sofa"][:count], random.Random(1))
    assert sentence.count(",") == (0 if count < 3 else count - 1)
    assert sentence.count(" and ") == (count > 1)


def test_the_same_seed_gives_the_same_sentences() -> None:
    words = ["garage", "menu", "violet", "sofa", "lamp"]
    assert coverage_sentences(words, random.Random(3)) == coverage_sentences(words, random.Random(3))


def test_missing_words_leave_out_what_makes_no_sense_aloud() -> None:
    assert missing_words(["garage", "dont", "www", "x", "menu"], {"menu"}) == ["garage"]
