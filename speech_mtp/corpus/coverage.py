"""Carrier sentences for words that the text does not hold, so that every frequent word is heard at least once."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from speech_mtp.corpus.sentences import zipf

WORDS_PER_SENTENCE = 4
TEMPLATES = (
    "She wrote down {}.",
    "The words on the board are {}.",
    "Can you spell {}?",
    "He kept saying {}.",
    "My list has {} on it.",
    "I think the answers were {}.",
    "{} are the next words.",
    "Please read {} one more time.",
    "We looked up {} last night.",
    "Did you mean {}?",
    "They circled {} in red.",
    "The teacher asked about {} today.",
    "{} came up in the crossword.",
    "All I remember is {}!",
)
_CLITICS = ("t", "s", "m", "d", "ve", "re", "ll")


def coverage_sentences(words: Sequence[str], rng: random.Random) -> list[str]:
    """Every word of ``words`` in one sentence of a varied pattern, four to a sentence, in an order drawn by ``rng``."""
    shuffled = rng.sample(list(words), len(words))
    groups = [shuffled[i : i + WORDS_PER_SENTENCE] for i in range(0, len(shuffled), WORDS_PER_SENTENCE)]
    return [_sentence(rng.choice(TEMPLATES), group) for group in groups]


def _sentence(template: str, group: Sequence[str]) -> str:
    listed = " and ".join(group)
    if len(group) > 2:
        listed = f"{', '.join(group[:-1])}, and {group[-1]}"
    sentence = template.format(listed)
    return sentence[0].upper() + sentence[1:]


def missing_words(frequent: Iterable[str], present: set[str]) -> list[str]:
    """The words of ``frequent`` that are not ``present`` and that make sense aloud."""
    return [word for word in frequent if word not in present and speakable_word(word)]


def speakable_word(word: str) -> bool:
    """Whether a plain-letter word can be read as a word.

    No: a single letter, an abbreviation without a vowel, and a contraction that lost its apostrophe ("dont").
    """
    if len(word) < 2 or not any(letter in "aeiouy" for letter in word):
        return False
    endings = [c for c in _CLITICS if word.endswith(c) and len(word) > len(c)]
    return all(zipf(f"{word[: -len(c)]}'{c}", whole=True) <= zipf(word) for c in endings)
