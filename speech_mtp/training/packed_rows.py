"""Rows of packed documents: batches by number, as a pure function of the seed and the number.

The tokens of a split are one stream that is cut into rows of a fixed length, at other places in every pass. A document
that is cut goes on in the next row as if it began there. Every token but the starts is predicted once a pass::

    stream    < a a a > < b b > < c c c c c >        <, >: start and end
    row 0     < a a a > < b        labels  a a a > - b b       -: nothing to predict across a border
    row 1     b > < c c c c        labels  > - c c c c c
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from speech_mtp.corpus.document_store import DocumentStore
from speech_mtp.layouts.base import IGNORE
from speech_mtp.types import Kind, Positions


class PackedRows:
    """Batches of ``batch`` rows of ``length`` tokens. Raises ValueError where there are fewer than
    ``least`` rows."""

    def __init__(
        self, store: DocumentStore, split: str, batch: int, length: int, seed: int = 0, least: int = 1
    ) -> None:
        self.batch_size, self.length, self.seed = batch, length, seed
        self._tokens, self._starts = store.tokens(split), store.starts(split)
        self.num_rows = (len(self._tokens) - 1) // length
        if self.num_rows < least:
            raise ValueError(
                f"The {split} split in {store.folder} gives {self.num_rows} rows of {length} tokens, and a step needs "
                f"{least}; give more text, or a smaller batch or length."
            )
        self._pass: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def __len__(self) -> int:
        """Batches of a pass; a last one that would not be whole is left out."""
        return self.num_rows // self.batch_size

    def batch(self, number: int) -> Positions:
        """Batch n is batch n % len of pass n // len."""
        epoch, at = divmod(number, len(self))
        return self._at(self._begins(epoch)[at * self.batch_size : (at + 1) * self.batch_size])

    def in_order(self, most: int | None = None) -> Iterator[Positions]:
        """The whole split once, the last row filled up; or ``most`` rows at even distances, so that they are of many
        documents."""
        begins = np.arange(0, len(self._tokens) - 1, self.length)
        if most is not None and most < len(begins):
            begins = begins[np.arange(most) * len(begins) // most]
        for at in range(0, len(begins), self.batch_size):
            yield self._at(begins[at : at + self.batch_size])

    def _begins(self, epoch: int) -> np.ndarray:
        """Where the rows of a pass begin, in the order in which they are read."""
        if self._pass[0] != epoch:
            rng = np.random.default_rng((self.seed, epoch))
            shift = int(rng.integers(len(self._tokens) - self.num_rows * self.length))
            self._pass = epoch, rng.permutation(self.num_rows) * self.length + shift
        return self._pass[1]

    def _at(self, begins: np.ndarray) -> Positions:
        """Rows ``[B, T]`` that begin there. A document is a segment (from 1 on; 0 is what fills up)."""
        place = begins[:, None] + np.arange(self.length + 1)
        there = place < len(self._tokens)
        tokens = np.where(there, self._tokens[np.minimum(place, len(self._tokens) - 1)], 0).astype(np.int64)
        document = np.searchsorted(self._starts, place, side="right") - 1
        index = place - np.maximum(self._starts[document], begins[:, None])
        segment = np.where(there, document - document[:, :1] + 1, 0)
        label = np.where(segment[:, 1:] == segment[:, :-1], tokens[:, 1:], IGNORE)
        label[~there[:, 1:]] = IGNORE
        fields = [torch.from_numpy(np.ascontiguousarray(x[:, : self.length])) for x in (tokens, index, segment, label)]
        kind = torch.where(fields[2] > 0, Kind.TEXT, Kind.PAD)
        return Positions(fields[0][..., None], kind, fields[1], fields[2], labels=fields[3][..., None])
