"""Sentences out of a stream of text.

The splitter reads whole words, each exactly once, together with the first letter of the word after it.
What it decides can therefore not depend on how the text was cut into chunks, and the offline split is the
stream fed in one piece.
"""

from __future__ import annotations

import re

WORD = re.compile(r"\S+")
CLOSERS = "\"')]}”’»*_"
CLAUSE_ENDS = (",", ";", ":", "—", "–", "-")


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


CONJUNCTIONS = _words(
    "and but or nor so yet because although though while which who that when where if unless until since"
)
NEVER_LAST = _words(
    "mr mrs ms mx dr prof st rev hon gen col capt lt sgt maj gov sen rep pres messrs mt ft fig figs vol pp ed vs cf"
    " e.g i.e approx dept est tel ext"
)
"""Abbreviations that a sentence does not end with."""
NUMBERED = _words("no nos p sec ch art")
"""Abbreviations only before a number: "No. 5", but "No. I will not."."""
SOMETIMES_LAST = _words(
    "etc inc ltd co corp jr sr bros ave blvd rd a.m p.m al jan feb mar apr jun jul aug sep sept oct nov dec"
    " mon tue tues wed thu thur thurs fri sat sun min max avg"
)
"""Abbreviations that end a sentence when a capital follows."""
INITIALS = re.compile(r"(?:[A-HJ-Z]|[A-Za-z](?:\.[A-Za-z])+)\Z")  # "J" of "J. Smith", "U.S"; never the word "I"


class SentenceBuffer:
    """Collects pushed text and gives it back sentence by sentence, words joined by single spaces.

    No sentence is longer than ``max_chars`` unless it is a single word. A sentence comes out as soon as the
    first letter after it has been seen. Stretches without any letter or digit are dropped at the end.
    """

    def __init__(self, max_chars: int = 220) -> None:
        if max_chars < 1:
            raise ValueError(f"max_chars is {max_chars}; a sentence needs room for at least one character.")
        self.max_chars = max_chars
        self._unread = ""
        self._words: list[str] = []

    def push(self, text: str) -> list[str]:
        """Add ``text`` (any piece of the stream, even half a word); the sentences that are now complete."""
        self._unread += text
        return self._read(final=False)

    def flush(self) -> list[str]:
        """The text ends here: the remaining sentences. The buffer is empty and reusable afterwards."""
        sentences = self._read(final=True)
        rest, self._words, self._unread = self._cut(self._words, final=True), [], ""
        return sentences + rest

    @property
    def pending(self) -> list[str]:
        """The words of the unfinished sentence that have been read; only :meth:`flush` may still drop them."""
        return list(self._words)

    def _read(self, final: bool) -> list[str]:
        """Feed every unread word whose successor is known well enough."""
        found = list(WORD.finditer(self._unread))
        sentences: list[str] = []
        done = 0
        for i, word in enumerate(found):
            following = found[i + 1] if i + 1 < len(found) else None
            whole = following is not None and (final or following.end() < len(self._unread))
            first = next((c for c in following.group() if c.isalnum()), "") if following else ""
            if not (first or whole or final):
                break
            gap = self._unread[word.end() : following.start()] if following else ""
            bullet = "\n" in gap and following is not None and following.group()[0] in "-*•"
            sentences += self._feed(word.group(), first, gap.count("\n") > 1 or bullet)
            done = following.start() if following else word.end()
        self._unread = self._unread[done:]
        return sentences

    def _feed(self, word: str, follower: str, paragraph: bool) -> list[str]:
        self._words.append(word)
        ended = paragraph or ends_sentence(word, follower, first=len(self._words) == 1)
        if ended and any(c.isalnum() for w in self._words for c in w):
            sentences, self._words = self._cut(self._words, final=True), []
            return sentences
        return self._cut(self._words, final=False)

    def _cut(self, words: list[str], final: bool) -> list[str]:
        """Take sentences of at most ``max_chars`` off the front of ``words``; all of them when ``final``."""
        sentences: list[str] = []
        while len(words) > 1 and sum(map(len, words)) + len(words) - 1 > self.max_chars:
            count = _best_cut(words, self.max_chars)
            sentences.append(" ".join(words[:count]))
            del words[:count]
        if final and words:
            sentences.append(" ".join(words))
        return [s for s in sentences if any(c.isalnum() for c in s)]


def split_sentences(text: str, max_chars: int = 220) -> list[str]:
    """The sentences of ``text``: what a :class:`SentenceBuffer` gives for it, however it is chunked."""
    buffer = SentenceBuffer(max_chars)
    return buffer.push(text) + buffer.flush()


def ends_sentence(word: str, follower: str, first: bool) -> bool:
    """Whether a sentence ends with ``word``; ``follower`` is the first letter or digit of the next word."""
    core = word.rstrip(CLOSERS)
    if core.endswith(("?", "!")):
        return core == word or not follower.islower()
    if core.endswith(("..", "…")):
        return not follower.islower()
    if not core.endswith("."):
        return False
    name = core[:-1].lstrip("\"'([{“‘«*_")
    if name.lower() in NUMBERED and follower.isdigit():
        return False
    if name.lower() in SOMETIMES_LAST:
        return not follower or follower.isupper()
    listed = first and name.isdigit()
    return not (listed or name.lower() in NEVER_LAST or INITIALS.match(name))


def _best_cut(words: list[str], max_chars: int) -> int:
    """How many of ``words`` to take: up to the last clause end, else conjunction, else what fits."""
    clause = conjunction = 0
    fits, length = 1, len(words[0])
    for i in range(1, len(words)):
        if length > max_chars / 3:
            clause = i if words[i - 1].rstrip(CLOSERS).endswith(CLAUSE_ENDS) else clause
            conjunction = i if words[i].lower() in CONJUNCTIONS else conjunction
        length += 1 + len(words[i])
        if length > max_chars:
            break
        fits = i + 1
    return clause or conjunction or fits
