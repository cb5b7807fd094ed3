from __future__ import annotations

import pytest

from speech_mtp.corpus.sentences import SentenceRules, clean_sentence, harvest, key_of, refusal, split_sentences


def common(word: str) -> float:
    return 0.0 if word == "flurbly" else 5.0


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("I like tea. It is warm! Do you?", ["I like tea.", "It is warm!"]),
        ("1. **The dog** barked loudly.\n- We went home.\n* She was cold.", 3),
        ("Person 1: How are you today?\nAlice: I am fine, thanks.", ["How are you today?", "I am fine, thanks."]),
        ("Hi there,\n\nI hope you’re well… See you soon.", ["I hope you're well.", "See you soon."]),
        ("I saw Mr. Smith at noon. He waved at me.", ["I saw Mr. Smith at noon.", "He waved at me."]),
        (
            "“Come here now,” he said. It was late \u2014 too late.",
            ["Come here now, he said.", "It was late, too late."],
        ),
        ("Happy birthday to you! 🎉\nWe met at the café.", ["Happy birthday to you!", "We met at the cafe."]),
        ("What is that?!  I do not know...", ["What is that?", "I do not know."]),
        ("The story goes on and then", []),
    ],
)
def test_harvest(text: str, kept: list[str] | int) -> None:
    found = harvest([text], rarity=common).sentences
    assert (len(found) if isinstance(kept, int) else found) == kept


@pytest.mark.parametrize(
    ("sentence", "reason"),
    [
        ("Go home.", "too few words"),
        ("It costs 3 dollars.", "digits"),
        ("We met in Москва.", "other script or symbol"),
        ("He said, \"I'm here.", "unbalanced quotes"),
        ("Mail me at bob@home.", "markup or symbol"),
        ("Use the list [insert name] here.", "markup or symbol"),
        ("travel is a joy.", "starts in the middle"),
        ("I like the flurbly bird.", "unknown word"),
        ("Very very very good.", "repeated word"),
        ("Here are three short sentences.", "about the task"),
        ("I LOVE this.", None),
        ("I REALLY LOVE this.", "capitals"),
        ("This is A.B. and more.", "several sentences"),
        ("They said it was good,", "no sentence end"),
        (" ".join(["Word", *["word", "bird"] * 13]) + ".", "too long"),
        ("It's a well-known place; isn't it?", None),
    ],
)
def test_refusal_names_the_reason(sentence: str, reason: str | None) -> None:
    assert refusal(sentence, SentenceRules(), common) == reason


def test_duplicates_are_found_without_case_and_punctuation_and_across_calls() -> None:
    seen: set[str] = set()
    first = harvest(["I like tea.", "i like tea. I LIKE tea!"], seen=seen, rarity=common)
    assert first.sentences == ["I like tea."]
    assert first.rejects == {"starts in the middle": 1, "duplicate": 1}
    assert harvest(["I like tea?"], seen=seen, rarity=common).sentences == []
    assert seen == {key_of("I like tea.")}


def test_cleaning_is_idempotent() -> None:
    for text in ['"Go away," he said \u2013 twice.', "Wait... what?!", "A  b ,c ."]:
        assert clean_sentence(clean_sentence(text)) == clean_sentence(text)


def test_real_words_are_known() -> None:
    pytest.importorskip("wordfreq", reason="needs the train extra")
    assert harvest(["Anna's neighbours haven't called.", "The zzxqk went home."]).sentences == [
        "Anna's neighbours haven't called."
    ]


def test_split_keeps_every_character_of_plain_text() -> None:
    text = "One is here. Two is there? Three! And four"
    assert " ".join(split_sentences(text)) == text
