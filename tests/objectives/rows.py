"""Packed rows of documents, for tests of objectives."""

from __future__ import annotations

import torch

from speech_mtp.layouts.base import IGNORE
from speech_mtp.types import Kind, Positions


def packed(*rows: list[list[int]]) -> Positions:
    """Each row is a list of documents, each a list of tokens; rows are filled up to the longest with zeros."""
    longest = max(sum(map(len, row)) for row in rows)
    fields = [_row(row, longest) for row in rows]
    tokens, index, segment, labels = (torch.tensor(field) for field in zip(*fields, strict=True))
    kind = torch.where(segment > 0, Kind.TEXT, Kind.PAD)
    return Positions(tokens[..., None], kind, index, segment, labels=labels[..., None])


def _row(documents: list[list[int]], longest: int) -> tuple[list[int], list[int], list[int], list[int]]:
    missing = longest - sum(map(len, documents))
    tokens = [token for document in documents for token in document] + [0] * missing
    index = [t for document in documents for t in range(len(document))] + [0] * missing
    segment = [d for d, document in enumerate(documents, start=1) for _ in document] + [0] * missing
    labels = [label for document in documents for label in [*document[1:], IGNORE]] + [IGNORE] * missing
    return tokens, index, segment, labels


def random_rows(rows: int, length: int, vocab_size: int) -> Positions:
    """Rows of two documents each, of the same ``length`` together."""
    tokens = torch.randint(vocab_size, (rows, length)).tolist()
    cuts = torch.randint(2, length - 1, (rows,)).tolist()
    return packed(*([row[:cut], row[cut:]] for row, cut in zip(tokens, cuts, strict=True)))
