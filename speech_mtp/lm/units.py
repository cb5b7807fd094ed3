"""Text -> text units: phonemes, each joined with the hidden state of the backbone token that it belongs to.

Text must be normalised already (``speech_mtp.text.normalize``). Whole texts go through :class:`UnitMaker`,
text that is still being written through :class:`UnitStream`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speech_mtp.lm.backbone import Backbone, Span
from speech_mtp.text.g2p.base import G2P
from speech_mtp.text.phonemes import Unit
from speech_mtp.types import TextUnits

WordUnits = tuple[str, int, int]
"""A written word, its first unit and the unit after its last."""


class UnitMaker:
    """Makes text units with one backbone and one grapheme-to-phoneme front end."""

    def __init__(self, backbone: Backbone, g2p: G2P) -> None:
        self.backbone = backbone
        self.g2p = g2p

    def make(self, texts: list[str]) -> TextUnits:
        """Units of whole texts, padded with 0. Raises ValueError for a word that cannot be pronounced."""
        units = [self.g2p.phonemize(text) for text in texts]
        encoded = self.backbone.encode(texts)
        tokens = [join(found, spans) for found, spans in zip(units, encoded.spans, strict=True)]
        return text_units(units, tokens, encoded.hidden, complete=True)

    def words(self, text: str) -> list[WordUnits]:
        """The written words of ``text`` with the units that :meth:`make` gives them; pauses belong to none."""
        return written_words(text, self.g2p.phonemize(text))


class UnitStream:
    """Units of one text that arrives in pieces of any size; what was handed out never changes.

    A word is handed out when the word after it is complete (white space follows it), or at :meth:`finish`. It is
    read in the context of the text up to that next word, so the units depend on the text alone, never on how it
    was cut. They equal those of :meth:`UnitMaker.make` unless the front end would need more than one following
    word for a reading (such as the tense of "read"), or merges punctuation that stands alone with what precedes it.

    After a ValueError for an unreadable word the stream must not be used again.
    """

    def __init__(self, maker: UnitMaker) -> None:
        self._maker = maker
        self._state = maker.backbone.open()
        self._text = ""
        self._searched = 0  # characters in which complete words have been looked for
        self._last_word = 0  # where the last complete word starts; everything before it is handed out
        self._units: list[Unit] = []
        self._spans: list[Span] = []
        self._hidden = [torch.zeros(1, 0, maker.backbone.dim, device=maker.backbone.device)]
        self.complete = False

    def push(self, text_piece: str) -> None:
        """Add text: any piece, even half a word. White space at the very start of the text is dropped."""
        if self.complete:
            raise ValueError("The text has been finished; open a new stream for more text.")
        self._text += text_piece if self._text else text_piece.lstrip()
        for word in re.compile(r"\S+(?=\s)").finditer(self._text, self._searched):
            self._searched = word.end()
            if any(c.isalnum() for c in word.group()):
                self._hand_out(self._text[: word.end()], word.start())
                self._last_word = word.start()
        self._read(self._text[: self._last_word].rstrip())

    def finish(self) -> None:
        """The text ends here: every word that is still held back is handed out."""
        if not self.complete:
            self._text = self._text.rstrip()
            self._hand_out(self._text, len(self._text))
            self._read(self._text)
            self.complete = True

    @property
    def units(self) -> TextUnits:
        """All units handed out so far, as a batch of one row."""
        return text_units([self._units], [join(self._units, self._spans)], torch.cat(self._hidden, 1), self.complete)

    @property
    def words(self) -> list[WordUnits]:
        """The written words handed out so far."""
        return written_words(self._text, self._units)

    def _hand_out(self, context: str, end: int) -> None:
        """Append the units that start in ``[self._last_word, end)``, read in ``context``."""
        for unit in self._maker.g2p.phonemize(context):
            if self._last_word <= unit.char_start < end:
                self._units.append(unit)

    def _read(self, text: str) -> None:
        """Let the backbone read up to the end of ``text``."""
        piece = text[len(self._state.text) :]
        if piece:
            hidden, spans = self._maker.backbone.extend(self._state, piece)
            self._hidden.append(hidden)
            self._spans += spans


def join(units: Iterable[Unit], spans: list[Span]) -> list[int]:
    """The token of every unit; never decreasing.

    A word's phonemes are spread evenly over its characters, and each takes the token that holds its character.
    """
    tokens: list[int] = []
    token = 0
    for (start, end), group in groupby(units, lambda unit: (unit.char_start, unit.char_end)):
        count = len(list(group))
        for i in range(count):
            at = start + (2 * i + 1) * (end - start) // (2 * count)
            while token + 1 < len(spans) and spans[token][1] <= at:
                token += 1
            tokens.append(token)
    return tokens


def written_words(text: str, units: list[Unit]) -> list[WordUnits]:
    """Each written word that has units, in order, with its range of units."""
    words: list[WordUnits] = []
    first = 0
    for (pause, start, end), group in groupby(units, lambda u: (u.is_pause, u.char_start, u.char_end)):
        last = first + len(list(group))
        if not pause:
            words.append((text[start:end], first, last))
        first = last
    return words


def text_units(units: list[list[Unit]], tokens: list[list[int]], hidden: Tensor, complete: bool) -> TextUnits:
    """Rows of units and of their tokens, with ``hidden [B, L, D]`` -> a padded batch on the device of ``hidden``."""

    def pad(rows: list[list[int]]) -> Tensor:
        return pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True)

    return TextUnits(
        phoneme=pad([[u.id for u in row] for row in units]),
        stress=pad([[u.stress for u in row] for row in units]),
        word_start=pad([[int(u.word_start) for u in row] for row in units]),
        token=pad(tokens),
        lengths=torch.tensor([len(row) for row in units]),
        hidden=hidden,
        complete=torch.full((len(units),), complete),
    ).to(hidden.device)
