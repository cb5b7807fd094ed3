"""Text -> text units: phonemes, each joined with the hidden state of the backbone token that it belongs to.

Text must be normalised already (``speech_mtp.text.normalize``). Whole texts go through :class:`UnitMaker`,
text that is spoken while it is read, or still being written, through :class:`UnitStream`; both read a word in the
context of the text up to the end of the second word after it (:func:`speech_mtp.text.g2p.base.read_words`), so they
give the same units.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, islice, takewhile

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speech_mtp.lm.reader import Span, TextReader
from speech_mtp.text import inline
from speech_mtp.text.g2p.base import G2P, WORD, read_text, read_words
from speech_mtp.text.phonemes import Unit
from speech_mtp.types import TextUnits

WordUnits = tuple[str, int, int]
"""A written word, its first unit and the unit after its last."""


class UnitMaker:
    """Makes text units with one backbone and one grapheme-to-phoneme front end."""

    def __init__(self, backbone: TextReader, g2p: G2P) -> None:
        self.backbone = backbone
        self.g2p = g2p

    def make(self, texts: list[str]) -> TextUnits:
        """Units of whole texts, padded with 0. Raises ValueError for a word that cannot be pronounced."""
        units = [read_text(self.g2p, text) for text in texts]
        encoded = self.backbone.encode(texts)
        tokens = [join(found, spans) for found, spans in zip(units, encoded.spans, strict=True)]
        return text_units(units, tokens, encoded.hidden, complete=True)

    def words(self, text: str) -> list[WordUnits]:
        """The written words of ``text`` with the units that :meth:`make` gives them; pauses belong to none."""
        return written_words(text, read_text(self.g2p, text))


class UnitStream:
    """Units of one text that arrives in pieces of whole words; what was handed out never changes.

    A word is read when the second word after it has come, or at :meth:`finish`. The backbone reads only as far as
    :meth:`advance` is called. After a ValueError for an unreadable word the stream must not be used again.
    """

    def __init__(self, maker: UnitMaker) -> None:
        self._maker = maker
        self._state = maker.backbone.open()
        self._text = ""
        self._words: list[Span] = []
        self._num_read = 0  # words that have units
        self._units: list[Unit] = []
        self._tokens: list[int] = []
        # Phoneme, stress, word start and token [4, U] of the units whose token is read; grows in :attr:`units`.
        self._columns = torch.zeros(4, 0, dtype=torch.long, device=maker.backbone.device)
        self._complete = False

    def push(self, text_piece: str) -> None:
        """Add words; all but the first piece begin with white space, which ends the word before."""
        if self._complete:
            raise ValueError("The text has been finished; open a new stream for more text.")
        start = len(self._text)
        self._text += text_piece
        self._words += [(start + word.start(), start + word.end()) for word in WORD.finditer(text_piece)]
        self._read_words()

    def finish(self) -> None:
        """The text ends here: every word that is still held back is read."""
        if not self._complete:
            self._complete = True
            self._read_words()
            self._close_if_read()

    @property
    def finished(self) -> bool:
        """Whether the text has ended."""
        return self._complete

    @property
    def unread(self) -> bool:
        """Whether there is text for the backbone that it has not read."""
        return self._state.unread

    def worth_reading(self, known: int) -> bool:
        """Whether to let the backbone read, for somebody who can go on with more than ``known`` units: a block that is
        not full is read again when it has grown, so not for less than that."""
        return self.unread and (self._complete or len(self._units) > known or self._state.block_is_full)

    def advance(self) -> bool:
        """Let the backbone read one block further, if any of its text is unread; whether it has."""
        return advance_all([self])[0]

    def close(self) -> None:
        """The backbone reads no further, and may forget the text; units that are there stay. Done by itself when all
        of a finished text is read, or when the stream is no longer used."""
        self._maker.backbone.close(self._state)

    @property
    def units(self) -> TextUnits:
        """The units whose token the backbone has read, as a batch of one row."""
        states, known = self._state.states, self._columns.shape[1]
        new = list(takewhile(lambda token: token < states.shape[1], islice(self._tokens, known, None)))
        if new:
            units = self._units[known : known + len(new)]
            columns = [[u.id, u.stress, u.word_start, token] for u, token in zip(units, new, strict=True)]
            more = torch.tensor(columns, dtype=torch.long, device=self._columns.device).T
            self._columns = torch.cat([self._columns, more], 1)
        phoneme, stress, word_start, token = self._columns.split(1)
        count = phoneme.shape[1]
        return TextUnits(
            phoneme=phoneme,
            stress=stress,
            word_start=word_start,
            token=token,
            lengths=torch.tensor([count], device=phoneme.device),
            hidden=states,
            complete=torch.tensor([self._complete and count == len(self._units)], device=phoneme.device),
        )

    @property
    def words(self) -> list[WordUnits]:
        """The written words that are read."""
        return written_words(self._text, self._units)

    def _read_words(self) -> None:
        """Read the words that have enough context, and show the backbone the text up to the end of the last one."""
        for reading in read_words(self._maker.g2p, self._text, self._words, self._num_read, self._complete):
            self._units += reading
            self._num_read += 1
        if self._num_read:
            end = len(self._text) if self._complete else self._words[self._num_read - 1][1]
            self._maker.backbone.extend(self._state, self._text[len(self._state.text) : end])
            self._tokens = join(self._units, self._state.spans)

    def _close_if_read(self) -> None:
        if self._complete and not self.unread:
            self.close()


def advance_all(streams: Sequence[UnitStream], blocks: int = 1) -> list[bool]:
    """Let the backbone read on in every stream with unread text, all of them in one pass; for each, whether it has.
    The streams are of one maker. ``blocks``: see :meth:`speech_mtp.lm.reader.TextReader.advance_many`."""
    if not streams:
        return []
    backbone = streams[0]._maker.backbone
    assert all(stream._maker.backbone is backbone for stream in streams), "streams of several backbones"
    read = backbone.advance_many([stream._state for stream in streams], blocks)
    for stream in streams:
        stream._close_if_read()
    return read


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
            words.append((inline.written(text[start:end]), first, last))
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
