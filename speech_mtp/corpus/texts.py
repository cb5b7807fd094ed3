"""Where the sentences of a corpus come from, and which of them are held out."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from speech_mtp.corpus.coverage import coverage_sentences, missing_words
from speech_mtp.corpus.manifest import read_lines
from speech_mtp.corpus.sentences import SentenceRules, frequent_words, harvest, key_of, words_of


class TextSource(BaseModel):
    """A text file (any lines or paragraphs), or a ``.jsonl`` file of which ``field`` holds text.

    ``limit`` keeps the first sentences only; ``dev_fraction`` of the sentences are held out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    path: Path
    field: str | None = None
    limit: int | None = Field(default=None, ge=1)
    dev_fraction: float = Field(default=0.0, ge=0, le=1)


@dataclass(frozen=True)
class Sentence:
    """A sentence to be spoken; ``split`` is ``train`` or ``dev``."""

    text: str
    split: str


@dataclass
class Script:
    """All sentences of a corpus, and how many pieces of text were refused for which reason."""

    sentences: list[Sentence] = field(default_factory=list)
    rejects: Counter[str] = field(default_factory=Counter)


def load_script(sources: list[TextSource], rules: SentenceRules, coverage_words: int, seed: int) -> Script:
    """1. the sentences of every source, each distinct one once, 2. carriers for frequent words that are missing.

    The split of a sentence depends on its words alone, so that it stays what it is when sources are added.
    """
    script = Script()
    seen: set[str] = set()
    for source in sources:
        found = harvest(_texts(source), rules, seen)
        script.rejects += found.rejects
        script.sentences += [Sentence(s, split_of(s, source.dev_fraction)) for s in found.sentences[: source.limit]]
    if coverage_words:
        present = {word for s in script.sentences if s.split == "train" for word in words_of(s.text)}
        missing = missing_words(frequent_words(coverage_words), present)
        carriers = harvest(coverage_sentences(missing, random.Random(seed)), rules, seen)
        script.rejects += carriers.rejects
        script.sentences += [Sentence(s, "train") for s in carriers.sentences]
    if not script.sentences:
        raise ValueError("the text sources hold no speakable sentence; give other files or loosen the sentence rules.")
    return script


def split_of(sentence: str, dev_fraction: float) -> str:
    """``dev`` for a stable ``dev_fraction`` of all sentences, ``train`` for the others."""
    return "dev" if stable_fraction(f"split:{key_of(sentence)}") < dev_fraction else "train"


class Spoken(Protocol):
    """A row of a corpus: the sentence and the split that it was given."""

    @property
    def text(self) -> str: ...
    @property
    def split(self) -> str: ...


def rows_of(rows: Sequence[Spoken], split: str) -> list[int]:
    """The numbers of the rows of ``split``; a sentence that is ``dev`` in any row is in no other split.

    Corpora that are joined may have divided their sentences differently, and a sentence may be there in several voices.
    """
    held_out = {key_of(row.text) for row in rows if row.split == "dev"}
    return [
        i for i, row in enumerate(rows) if row.split == split and (split == "dev" or key_of(row.text) not in held_out)
    ]


def stable_fraction(text: str) -> float:
    """A number in [0, 1) that is the same for the same text on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) / 2**64


def _texts(source: TextSource) -> Iterator[str]:
    if source.path.suffix == ".jsonl":
        if source.field is None:
            raise ValueError(f"{source.path} is JSON lines; set `field` to the key that holds the text.")
        for number, line in enumerate(read_lines(source.path), start=1):
            if not isinstance(line.get(source.field), str):
                raise ValueError(f"{source.path}, line {number} has no text under {source.field!r}; set another field.")
            yield line[source.field]
        return
    if source.field is not None:
        raise ValueError(f"{source.path} is plain text, so it has no field {source.field!r}; remove the setting.")
    if not source.path.is_file():
        raise FileNotFoundError(f"There is no text file {source.path}.")
    with source.path.open(encoding="utf-8") as file:
        yield from file
