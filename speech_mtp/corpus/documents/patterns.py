"""Sentences made of patterns with slots, for what free text seldom holds: numbers, names, addresses, times, lists."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from speech_mtp import plugins
from speech_mtp.corpus.documents.base import Document, DocumentSource

LICENCE = "patterns of this project (Apache-2.0), filled by Faker (MIT)"


class PatternBook(BaseModel):
    """Patterns by kind; each kind is drawn as often as any other, and so is each pattern of a kind.

    A slot ``{{name}}`` is a list of ``lists``, or a formatter of the package Faker for ``locale``; ``{{name:how}}``
    calls that formatter with the arguments ``how`` of ``arguments``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    patterns: dict[str, list[str]] = Field(min_length=1)
    lists: dict[str, Annotated[list[str], Field(min_length=1)]] = {}
    arguments: dict[str, dict[str, Any]] = {}
    locale: str = "en_US"


class Patterns(DocumentSource):
    """``count`` sentences of the patterns in the YAML file ``book``. Sentence n is the same whatever the count.

    Raises FileNotFoundError where there is no such file, and ValueError for one that holds no :class:`PatternBook`, a
    slot that nothing can fill, or words that no pattern asks for.
    """

    licence = LICENCE

    def __init__(self, book: str, count: int, seed: int = 0) -> None:
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"count is {count!r}; ask for at least one sentence.")
        self._path, self._count, self._seed = Path(book), count, seed
        self._book = read_patterns(self._path)
        _check_used(self._book, self._path)
        self._fake = _filler(self._book)
        for kind, patterns in self._book.patterns.items():
            if not patterns:
                raise ValueError(f"{book} has no pattern of the kind {kind!r}; add one, or leave the kind out.")
            for pattern in patterns:
                self._fill(pattern, 0)

    def stamp(self) -> Any:
        known = hashlib.sha256(self._path.read_bytes()).hexdigest()
        return [self.licence, known, plugins.require("faker", "train").VERSION, self._count, self._seed]

    def documents(self) -> Iterator[Document]:
        kinds = list(self._book.patterns.values())
        for number in range(self._count):
            rng = random.Random(f"{self._seed}:{number}")
            text = self._fill(rng.choice(rng.choice(kinds)), rng.getrandbits(32))
            yield Document(text, text)

    def _fill(self, pattern: str, seed: int) -> str:
        self._fake.seed_instance(seed)
        try:
            text = str(self._fake.parse(pattern))
            if "{" in text or "}" in text:
                raise ValueError("a slot is {{name}} or {{name:how}}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{self._path} holds {pattern!r}, which cannot be filled: {error}.") from error
        text = " ".join(text.split())  # an address has lines
        return text[:1].upper() + text[1:]


def read_patterns(path: Path) -> PatternBook:
    """The patterns of a YAML file. Errors as for :class:`Patterns`."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of patterns {path}.")
    try:
        return PatternBook.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        raise ValueError(f"{path} is no valid file of patterns: {' '.join(str(error).split())}") from error


def _check_used(book: PatternBook, path: Path) -> None:
    every = " ".join(pattern for patterns in book.patterns.values() for pattern in patterns)
    for name in book.lists:
        if f"{{{{{name}}}}}" not in every:
            raise ValueError(f"No pattern of {path} has a slot for the list {name!r}; add one, or leave the list out.")
    for name in book.arguments:
        if f":{name}}}}}" not in every:
            raise ValueError(f"No pattern of {path} uses the arguments {name!r}; add one, or leave them out.")


def _filler(book: PatternBook) -> Any:
    faker = plugins.require("faker", "train")
    try:
        fake = faker.Factory.create(book.locale, arguments={})  # otherwise arguments are shared by all of the process
    except AttributeError as error:  # what Faker raises for a locale that it does not know
        raise ValueError(f"Faker has no words for {book.locale!r}; name another locale, such as en_US.") from error
    provider = plugins.require("faker.providers", "train").DynamicProvider
    for name, words in book.lists.items():
        if hasattr(fake, name):
            raise ValueError(f"Faker has a formatter {name!r} of its own; give the list another name.")
        fake.add_provider(provider(name, words, fake))
    for name, arguments in book.arguments.items():
        fake.set_arguments(name, arguments)
    return fake
