"""Where the sentences of a corpus come from, and which of them are held out."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from speech_mtp import plugins
from speech_mtp.corpus.coverage import coverage_sentences, missing_words
from speech_mtp.corpus.documents.base import DocumentSource
from speech_mtp.corpus.documents.files import read_text_file
from speech_mtp.corpus.manifest import read_lines
from speech_mtp.corpus.sentences import (
    Harvest,
    SentenceRules,
    clean_sentence,
    frequent_words,
    harvest,
    key_of,
    split_sentences,
    words_of,
)
from speech_mtp.files import replacing
from speech_mtp.progress import progress
from speech_mtp.text.normalize import normalize

SENTENCES = "sentences.txt"


class TextSource(BaseModel):
    """A text file (any lines or paragraphs), or a ``.jsonl`` file of which ``field`` holds text, or ``documents``, a
    plug-in of ``corpus.documents``.

    With ``normalize`` numbers, abbreviations and the like are written out, as they are said. ``limit`` keeps the first
    sentences only; ``dev_fraction`` of the sentences are held out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    path: Path | None = None
    field: str | None = None
    documents: str | dict[str, Any] | None = None
    normalize: bool = False
    limit: int | None = Field(default=None, ge=1)
    dev_fraction: float = Field(default=0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.documents is None):
            raise ValueError("a text source has either a path or documents; give one of them")
        if self.documents is not None and self.field is not None:
            raise ValueError("documents have no field of the corpus; name it in their own settings")
        return self


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
        found = sentences_of(source, _opened(source)[0], rules, seen)
        script.rejects += found.rejects
        script.sentences += [Sentence(s, split_of(s, source.dev_fraction)) for s in found.sentences]
    if coverage_words:
        present = {word for s in script.sentences if s.split == "train" for word in words_of(s.text)}
        missing = missing_words(frequent_words(coverage_words), present)
        carriers = harvest(coverage_sentences(missing, random.Random(seed)), rules, seen)
        script.rejects += carriers.rejects
        script.sentences += [Sentence(s, "train") for s in carriers.sentences]
    if not script.sentences:
        raise ValueError("the text sources hold no speakable sentence; give other files or loosen the sentence rules.")
    return script


def sentences_of(source: TextSource, texts: Iterable[str], rules: SentenceRules, seen: set[str]) -> Harvest:
    """The speakable sentences of the ``texts`` of ``source`` whose key is not ``seen`` yet, at most its limit; keys are
    added there."""
    unread: Counter[str] = Counter()
    found = harvest(_said(texts, unread) if source.normalize else texts, rules, seen, limit=source.limit)
    found.rejects += unread
    return found


def _said(texts: Iterable[str], unread: Counter[str]) -> Iterator[str]:
    """The sentences of ``texts`` as they are said; those that nothing can be made of are counted in ``unread``."""
    for text in texts:
        for sentence in split_sentences(text):
            try:
                said = normalize(sentence)
            except ValueError:
                unread["cannot be read"] += 1
                continue
            first = next((char for char in sentence if char.isalnum()), "")
            yield said[:1].upper() + said[1:] if first.isdigit() else said


def write_sentences(
    sources: dict[str, TextSource], rules: SentenceRules, left_out: list[Path], out: Path
) -> dict[str, Any]:
    """Write the distinct sentences of ``sources`` into ``out/sentences.txt``, one a line; what each source gave, and
    the licence of its documents.

    The sentences of the text files ``left_out``, which are said in evaluations, are not among them, as they are written
    or as they are said. Raises ValueError for a source that holds out sentences (there is no place for them), and where
    none is speakable.
    """
    for name, source in sources.items():
        if source.dev_fraction:
            raise ValueError(f"The texts {name!r} hold sentences out; name those in left_out instead.")
    opened = {name: _opened(source) for name, source in sources.items()}
    seen = {key for path in left_out for key in _keys_of(path)}
    kept: list[str] = []
    report: dict[str, Any] = {}
    for name, source in progress(sources.items(), "sentences", "sources"):
        texts, licence = opened[name]
        found = sentences_of(source, texts, rules, seen)
        kept += found.sentences
        report[name] = {"sentences": len(found.sentences), "refused": dict(found.rejects.most_common())}
        report[name] |= {} if licence is None else {"licence": licence}
    if not kept:
        raise ValueError("The texts hold no speakable sentence; give others, or loosen the sentence rules.")
    out.mkdir(parents=True, exist_ok=True)
    with replacing(out / SENTENCES) as aside:
        aside.write_text("".join(f"{sentence}\n" for sentence in kept), encoding="utf-8")
    return report


def _keys_of(path: Path) -> Iterator[str]:
    """The keys of the sentences of a text file, as written and as said."""
    for line in _lines(TextSource(path=path), path):
        for sentence in split_sentences(line):
            yield key_of(clean_sentence(sentence))
            yield from (key_of(clean_sentence(said)) for said in _said([sentence], Counter()))


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


def _opened(source: TextSource) -> tuple[Iterator[str], str | None]:
    """The texts of ``source``, and their licence if it tells one. What its documents need is checked before the first
    is asked for. Of a document that was cut, the last sentence is left out."""
    if source.path is not None:
        return _lines(source, source.path), None
    assert source.documents is not None, "a source has a path or documents"
    found: DocumentSource = plugins.build("corpus.documents", source.documents)
    texts = (d.text if d.ended else "\n".join(split_sentences(d.text)[:-1]) for d in found.documents())
    return texts, found.licence


def _lines(source: TextSource, path: Path) -> Iterator[str]:
    if path.suffix == ".jsonl":
        if source.field is None:
            raise ValueError(f"{path} is JSON lines; set `field` to the key that holds the text.")
        for number, line in enumerate(read_lines(path), start=1):
            if not isinstance(line.get(source.field), str):
                raise ValueError(f"{path}, line {number} has no text under {source.field!r}; set another field.")
            yield line[source.field]
        return
    if source.field is not None:
        raise ValueError(f"{path} is plain text, so it has no field {source.field!r}; remove the setting.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no text file {path}.")
    yield from read_text_file(path).splitlines()
