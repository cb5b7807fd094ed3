"""Sentences out of a stream of text.

The splitter reads whole words, each exactly once, together with the first letter of the word after it.
What it decides can therefore not depend on how the text was cut into chunks, and the offline split is the
stream fed in one piece.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from speech_mtp.text import measures, tables

WORD = re.compile(r"\S+")
CLOSERS = "\"')]}”’»*_"
CLAUSE_ENDS = (",", ";", ":", "—", "–", "-")


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


CONJUNCTIONS = _words(
    "and but or nor so yet because although though while which who that when where if unless until since"
)
NEVER_LAST = _words(
    "mr mrs ms mx dr prof st rev hon gen col capt lt sgt maj gov sen rep pres messrs mt ft fig figs vol pp v vs cf"
    " e.g i.e approx dept est tel ext"
)
"""Abbreviations that a sentence does not end with."""
NUMBERED = _words("no nos p sec ch art apt ste rm bldg eq")
"""Abbreviations only before a number: "No. 5", but "No. I will not." and "She said no. 5 people left."."""
SOMETIMES_LAST = _words(
    "etc inc ltd co corp jr sr bros ave blvd rd a.m p.m al jan feb mar apr jun jul aug sep sept oct nov dec"
    " mon tue tues wed thu thur thurs fri sat sun min max avg"
)
"""Abbreviations that end a sentence when a capital follows."""
SHORTENED = (
    frozenset(word.lower() for word in (*tables.ABBREVIATIONS, *measures.UNITS) if word.isalpha() and len(word) > 1)
    - NEVER_LAST
)
"""Other abbreviations and units, which may be written with a full stop."""
ANSWERED = _words("said say says saying answered answer answers replied reply replies shouted whispered voted meant or")
"""Before "no.", which is then the word, not "number"."""
OPERATORS = "=+*/×÷<>≤≥≈"
"""What may follow a factorial: "5! = 120"."""
INITIALS = re.compile(r"(?:[A-HJ-Z]|[A-Za-z]{1,2}(?:\.[A-Za-z])+)\Z")  # "J" of "J. Smith", "U.S", "Ph.D"; never "I"


@dataclass(frozen=True)
class Word:
    """A written word, whether a sentence ends with it, and the first character of the word after it, if any."""

    text: str
    last: bool
    following: str = field(default="", compare=False)


class SentenceBuffer:
    """Collects pushed text and hands it out word by word, each word with whether it ends its sentence.

    A word is handed out as soon as that is known. In the first half of a long sentence this is with the first letter
    of the word after it. A sentence of more than ``max_chars`` characters is cut in its second half, at the last
    clause end, else before the last conjunction, else where it is full::

        |------ handed out at once ------|-- held from the first place to cut on --|
        0                          max_chars / 2                               max_chars

    No sentence is longer than ``max_chars`` unless one word of it is longer than half of that. Stretches without any
    letter or digit belong to the sentence after them, or are dropped at the end of the text.
    """

    def __init__(self, max_chars: int = 220) -> None:
        if max_chars < 1:
            raise ValueError(f"max_chars is {max_chars}; a sentence needs room for at least one character.")
        self.max_chars = max_chars
        self._unread = ""
        self._held: list[str] = []  # words of the sentence that are not handed out
        self._length = 0  # characters of the sentence that are handed out, a space after each word
        self._before = ""  # the word of the sentence that was fed last
        self._following = ""  # the first character after the words that were fed

    def push(self, text: str) -> list[Word]:
        """Add ``text`` (any piece of the stream, even half a word); the words that can now be handed out."""
        self._unread += text
        return self._read(final=False)

    def flush(self) -> list[Word]:
        """The text ends here: the remaining words. The buffer is empty and reusable afterwards."""
        words = self._read(final=True)
        self._unread, self._held, self._length, self._before = "", [], 0, ""
        return words

    def _read(self, final: bool) -> list[Word]:
        """Feed every unread word whose successor is known well enough."""
        found = list(WORD.finditer(self._unread))
        words: list[Word] = []
        done = 0
        for i, word in enumerate(found):
            following = found[i + 1] if i + 1 < len(found) else None
            whole = following is not None and (final or following.end() < len(self._unread))
            first = next((c for c in following.group() if c.isalnum()), "") if following else ""
            if not (first or whole or final):
                break
            gap = self._unread[word.end() : following.start()] if following else ""
            bullet = "\n" in gap and following is not None and following.group()[0] in "-*•"
            ended = following is None or gap.count("\n") > 1 or bullet
            follower = _follower(following.group(), first) if following else ""
            self._following = following.group()[0] if following else ""
            words += self._feed(word.group(), follower, ended)
            done = following.start() if following else word.end()
        self._unread = self._unread[done:]
        return words

    def _feed(self, word: str, follower: str, ended: bool) -> list[Word]:
        first = not self._length and not self._held
        self._held.append(word)
        words = self._cut()
        before, self._before = self._before, word
        if ended or ends_sentence(word, follower, first, before):
            self._before = ""
            return words + self._close(len(self._held))
        return words + self._hand_out()

    def _cut(self) -> list[Word]:
        """Close sentences as long as there are too many characters for one."""
        words: list[Word] = []
        while len(self._held) > 1 and self._length + len(" ".join(self._held)) > self.max_chars:
            words += self._close(self._best_cut())
        return words

    def _close(self, count: int) -> list[Word]:
        """The first ``count`` held words end the sentence, unless nothing in it can be spoken."""
        texts = self._held[:count]
        if not (self._length or _spoken(texts)):
            if count < len(self._held):  # too long for a sentence, and nothing to say
                del self._held[:count]
            return []
        del self._held[:count]
        self._length = 0
        return [Word(text, last=i == count - 1) for i, text in enumerate(texts)]

    def _hand_out(self) -> list[Word]:
        """The held words before the first place where the sentence might have to be cut."""
        count, length = 0, self._length
        for i, word in enumerate(self._held):
            length += len(word)
            if 2 * length > self.max_chars and (i + 1 == len(self._held) or self._may_end(i)):
                break
            count, length = i + 1, length + 1
        texts = self._held[:count]
        if not (self._length or _spoken(texts)):
            return []
        del self._held[:count]
        self._length += sum(len(text) + 1 for text in texts)
        following = [text[0] for text in (*texts[1:], *self._held[:1])] + [self._following]
        return [Word(text, False, after) for text, after in zip(texts, following, strict=False)]

    def _may_end(self, i: int) -> bool:
        """Whether the sentence could be cut between the held words i and i + 1."""
        return _ends_clause(self._held[i]) or _begins_clause(self._held[i + 1])

    def _best_cut(self) -> int:
        """How many of the held words to take: up to the last clause end, else conjunction, else what fits."""
        clause = conjunction = 0
        fits, length = 1, self._length + len(self._held[0])
        for i in range(1, len(self._held)):
            if 2 * length > self.max_chars:
                clause = i if _ends_clause(self._held[i - 1]) else clause
                conjunction = i if _begins_clause(self._held[i]) else conjunction
            length += 1 + len(self._held[i])
            if length > self.max_chars:
                break
            fits = i + 1
        return clause or conjunction or fits


def split_sentences(text: str, max_chars: int = 220) -> list[str]:
    """The sentences of ``text``, words joined by single spaces: what a :class:`SentenceBuffer` gives for it."""
    buffer = SentenceBuffer(max_chars)
    return joined(buffer.push(text) + buffer.flush())


def joined(words: Iterable[Word]) -> list[str]:
    """Words -> the sentences that they form, the last one perhaps unfinished."""
    sentences: list[list[str]] = [[]]
    for word in words:
        sentences[-1].append(word.text)
        if word.last:
            sentences.append([])
    return [" ".join(sentence) for sentence in sentences if sentence]


def _spoken(words: Iterable[str]) -> bool:
    return any(c.isalnum() for word in words for c in word)


def _ends_clause(word: str) -> bool:
    return word.rstrip(CLOSERS).endswith(CLAUSE_ENDS)


def _begins_clause(word: str) -> bool:
    return word.lower() in CONJUNCTIONS


def _follower(word: str, first: str) -> str:
    """What is known of the next ``word``, whose first letter or digit is ``first``: that, after a bracket if it opens
    one, or its first mark."""
    return ("(" if word[0] == "(" else "") + first if first else word[0]


def ends_sentence(word: str, follower: str, first: bool, before: str = "") -> bool:
    """Whether a sentence ends with ``word``, which is its ``first`` one or comes after ``before``.

    ``follower`` is what :func:`_follower` tells of the next word, and empty at the end of the text.
    """
    core = word.rstrip(CLOSERS)
    if core.endswith("!") and follower and follower in OPERATORS:
        return False
    if core.endswith(("?", "!")):
        return core == word or not follower.islower()
    if core.endswith(("..", "…")):
        return not follower.islower()
    if not core.endswith("."):
        return False
    name = core[:-1].lstrip("\"'([{“‘«*_")
    if name.lower() in NUMBERED and follower[-1:].isdigit():
        return name.lower() == "no" and before.lower() in ANSWERED
    if name.lower() in SOMETIMES_LAST or name.lower() in SHORTENED:
        return not follower or (follower.isupper() and follower[0] != "(")
    listed = first and name.isdigit()
    return not (listed or name.lower() in NEVER_LAST or INITIALS.match(name))
