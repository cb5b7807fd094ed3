"""Free text -> speakable sentences: split, clean, filter, and say why a sentence was refused.

Written for the raw generations of a small instruct model (lists, quotes, chat openings, a last sentence cut
off in the middle), but any text may come in. This module knows nothing of audio or of language models.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache

from speech_mtp import plugins

_PLAIN = str.maketrans(
    {
        "\u2018": "'", "\u2019": "'", "\u201b": "'", "\u2032": "'", "\u201c": '"', "\u201d": '"', "\u201e": '"',
        "\u00a0": " ", "\u2026": "...", "\u2010": "-", "\u2011": "-", "\u200b": None, "\ufeff": None,
    }
)  # fmt: skip
_DASH = re.compile(r"\s*(?:[\u2013\u2014\u2015]|--+)\s*|\s+-\s+")
_MARKER = re.compile(r"^\s*(?:[-*+\u2022>]+\s+|#+\s*|\(?\d{1,2}[.):]\s*|\(?[a-zA-Z]\)\s+)+")
_SPEAKER = re.compile(r'^"?\s*[A-Z][A-Za-z]*(?:\s[A-Z0-9][A-Za-z0-9]*){0,2}:\s+')
_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[A-Z0-9])")
_TITLE = re.compile(r"(?:^|[\s\"'(])(?:Mr|Mrs|Ms|Dr|St|Prof|Sr|Jr|[A-Z])\.$")
_EMPHASIS = re.compile(r"(\*\*|__|\*|_)(\S(?:[^*_]*\S)?)\1")
_SPEAKABLE = re.compile(r"[A-Za-z ,;:'.!?\-]+")
_INNER_STOP = re.compile(r"(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bDr)(?<!\bSt)[.!?](?!$)")
_META = re.compile(
    r"(?i)^(?:here(?:'s| is| are) (?:a|an|the|my|some|your|two|three|four|five|another)?\b.*"
    r"\b(?:sentences?|messages?|conversations?|examples?|tips|questions|rewritten|revised|version)\b"
    r"|note\b|sure\b.*\bhere|as an ai\b|the word\b|.*\b(?:language model|the sentences?|this sentence|chat message)\b)"
)
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)*")


@dataclass(frozen=True)
class SentenceRules:
    """What a speakable sentence is. ``min_zipf``: the rarest word allowed, on wordfreq's Zipf scale."""

    min_words: int = 3
    max_words: int = 25
    max_chars: int = 180
    min_zipf: float = 1.5


@dataclass
class Harvest:
    """Sentences kept, in order of arrival, and how many were refused for which reason."""

    sentences: list[str] = field(default_factory=list)
    rejects: Counter[str] = field(default_factory=Counter)


def split_sentences(text: str) -> list[str]:
    """Cut text at line ends and at sentence ends; list markers, speaker labels and emphasis marks are dropped."""
    found: list[str] = []
    for raw in text.translate(_PLAIN).splitlines():
        line = _SPEAKER.sub("", _MARKER.sub("", _EMPHASIS.sub(r"\2", raw))).strip()
        start = 0
        for end in _END.finditer(line):
            if not _TITLE.search(line[: end.start()]):
                found.append(line[start : end.end()].strip())
                start = end.end()
        found.append(line[start:].strip())
    return [sentence for sentence in found if sentence]


def clean_sentence(sentence: str) -> str:
    """One sentence in plain punctuation: no emoji, no accents, no double quotes that pair up, dashes as commas."""
    plain = _DASH.sub(", ", _plain_letters(sentence.translate(_PLAIN)))
    if plain.count('"') % 2:
        plain = plain[1:] if plain.startswith('"') else plain.removesuffix('"')
    if plain.count('"') % 2 == 0:
        plain = plain.replace('"', "")
    plain = re.sub(r"\.{2,}(?!\s*$)", ",", plain)  # an ellipsis inside is a pause
    plain = re.sub(r"\.{2,}\s*$", ".", plain)
    plain = re.sub(r"([!?])[!?.]+", r"\1", plain)
    plain = re.sub(r"\s+([,;:.!?])", r"\1", plain)
    plain = re.sub(r",\s*(?=[,;:.!?])", "", plain)
    return " ".join(plain.split()).lstrip(",;: ").strip()


def _plain_letters(text: str) -> str:
    """``text`` without pictograms and combining marks; letters of other scripts stay, to be refused by name."""
    dropped = ("So", "Sk", "Mn", "Cf")
    return "".join(c for c in unicodedata.normalize("NFKD", text) if unicodedata.category(c) not in dropped)


def words_of(sentence: str) -> list[str]:
    """The lower-case words of a sentence; a hyphen separates words, an apostrophe does not."""
    return _WORD.findall(sentence.lower())


@lru_cache(maxsize=200_000)
def zipf(word: str, whole: bool = False) -> float:
    """Zipf frequency of an English word (wordfreq), 0 if unknown; with ``whole`` false "Anna's" counts as "Anna"."""
    wordfreq = plugins.require("wordfreq", "train")
    frequency = float(wordfreq.zipf_frequency(word, "en"))
    if whole or "'" not in word:
        return frequency
    return max(frequency, float(wordfreq.zipf_frequency(word.split("'")[0], "en")))


def frequent_words(count: int) -> list[str]:
    """The ``count`` most frequent English words that are plain letters, most frequent first (wordfreq)."""
    wordfreq = plugins.require("wordfreq", "train")
    ranked = wordfreq.top_n_list("en", count * 2 + 1000)
    return [w for w in ranked if w.isascii() and w.isalpha() and (len(w) > 1 or w in ("a", "i"))][:count]


def refusal(sentence: str, rules: SentenceRules, rarity: Callable[[str], float] = zipf) -> str | None:
    """Why a cleaned sentence is not speakable, as a short reason; None when it is."""
    words = words_of(sentence)
    if not sentence.isascii():
        return "other script or symbol"
    if not sentence.endswith((".", "!", "?")):
        return "no sentence end"
    if '"' in sentence:
        return "unbalanced quotes"
    if any(character.isdigit() for character in sentence):
        return "digits"
    if not _SPEAKABLE.fullmatch(sentence) or "- " in sentence or " -" in sentence:
        return "markup or symbol"
    if not sentence[0].isupper():
        return "starts in the middle"
    if len(words) < rules.min_words:
        return "too few words"
    if len(words) > rules.max_words or len(sentence) > rules.max_chars:
        return "too long"
    if _INNER_STOP.search(sentence):
        return "several sentences"
    if _META.match(sentence):
        return "about the task"
    if sum(len(w) > 1 and w.isupper() for w in re.findall(r"[A-Za-z]+", sentence)) > 1:
        return "capitals"
    if any(a == b == c for a, b, c in zip(words, words[1:], words[2:], strict=False)):
        return "repeated word"
    if any(rarity(word) < rules.min_zipf for word in words):
        return "unknown word"
    return None


def key_of(sentence: str) -> str:
    """The words alone: two sentences of one key are the same sentence."""
    return " ".join(words_of(sentence))


def harvest(
    texts: Iterable[str],
    rules: SentenceRules = SentenceRules(),
    seen: set[str] | None = None,
    rarity: Callable[[str], float] = zipf,
    limit: int | None = None,
) -> Harvest:
    """Every distinct speakable sentence of ``texts``, or the first ``limit`` of them; no text is read after those.

    1. split each text, 2. clean each piece, 3. refuse by :func:`refusal`, 4. refuse what was already there.
    ``seen`` holds the keys (:func:`key_of`) of earlier sentences and is added to.
    """
    keys = set() if seen is None else seen
    out = Harvest()
    for sentence in _cleaned(texts):
        if len(out.sentences) == limit:
            break
        reason = refusal(sentence, rules, rarity)
        key = key_of(sentence)
        if reason is None and key in keys:
            reason = "duplicate"
        if reason is None:
            keys.add(key)
            out.sentences.append(sentence)
        else:
            out.rejects[reason] += 1
    return out


def _cleaned(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from filter(None, map(clean_sentence, split_sentences(text)))
