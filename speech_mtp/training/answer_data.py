"""Batches of a model's own answers: rows of tokens, packed or one answer each, as a pure function of a number."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from pydantic import ConfigDict
from torch import Tensor

from speech_mtp.corpus.answers import Answer
from speech_mtp.layouts.base import IGNORE
from speech_mtp.types import Kind, Positions


@dataclass(frozen=True)
class AnswerDataConfig:
    """``batch`` rows of at most ``length`` tokens: longer answers are cut. ``pack`` lets answers share a row; each is
    read as if alone. Rows of a batch are filled up to a multiple of ``pad_to``. Every
    ``dev_every``-th answer is held out. With ``prompts`` heads learn after the words of the user too: the trunk's law
    is known there as well, which is what soft targets need; what is held out is measured on answers all the same."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    batch: int = 8
    length: int = 512
    pack: bool = False
    pad_to: int = 32
    prompts: bool = False
    dev_every: int = 50
    seed: int = 0


class AnswerData:
    """Batches of answers by number: a pure function of the seed and the number, rows of like length together."""

    def __init__(self, answers: list[Answer], config: AnswerDataConfig) -> None:
        kept = [answer for answer in answers if len(answer.prompt) < config.length and answer.answer]
        if not kept:
            raise ValueError(f"There is no answer to train on or to evaluate with that fits {config.length} tokens.")
        self.answers, self.config = kept, config
        sizes = [min(config.length, len(a.prompt) + len(a.answer)) for a in kept]
        order = np.random.default_rng(config.seed).permutation(len(kept)).tolist()
        self.rows = fill_rows(sizes, order, config.length) if config.pack else [[i] for i in order]
        self._lengths = np.array([sum(sizes[i] for i in row) for row in self.rows])
        self._epoch: tuple[int, list[np.ndarray]] = (-1, [])

    def __len__(self) -> int:
        return -(-len(self.rows) // self.config.batch)

    def batch(self, number: int) -> Positions:
        """Batch n is batch n % len of pass n // len."""
        rows = [[self.answers[i] for i in self.rows[row]] for row in self.rows_of(number)]
        return collate(rows, self.config.length, self.config.pad_to, self.config.prompts)

    def rows_of(self, number: int) -> list[int]:
        """The rows of batch ``number``, counted over all batches of a pass: always the same answers."""
        epoch, at = divmod(number, len(self))
        if self._epoch[0] != epoch:
            rng = np.random.default_rng((self.config.seed, epoch))
            order = np.argsort(self._lengths * rng.uniform(0.9, 1.1, len(self.rows)), kind="stable")
            parts = np.array_split(order, len(self))
            self._epoch = (epoch, [parts[i] for i in rng.permutation(len(parts))])
        return [int(row) for row in self._epoch[1][at]]


def fill_rows(sizes: list[int], order: list[int], length: int, open_rows: int = 16) -> list[list[int]]:
    """Which texts, taken in ``order``, share a row of ``length`` tokens: each goes into the first row that has room
    among the ``open_rows`` newest."""
    rows: list[list[int]] = []
    room: list[int] = []
    for i in order:
        recent = range(max(0, len(rows) - open_rows), len(rows))
        at = next((r for r in recent if room[r] >= sizes[i]), len(rows))
        if at == len(rows):
            rows.append([])
            room.append(length)
        rows[at].append(i)
        room[at] -= sizes[i]
    return rows


def collate(rows: list[list[Answer]], length: int, pad_to: int = 1, prompts: bool = False) -> Positions:
    """Rows of answers -> positions ``[B, T]``, T a multiple of ``pad_to``. An answer is a segment (from 1 on; 0 is
    padding) that begins at rotary position 0; labels are the tokens of answers alone, or of ``prompts`` too."""
    sizes = [[min(length, len(item.prompt) + len(item.answer)) for item in row] for row in rows]
    longest = max(map(sum, sizes))
    fields = np.zeros((4, len(rows), -(-longest // pad_to) * pad_to), np.int64)  # token, label, index, segment
    fields[1] = IGNORE
    for b, row in enumerate(rows):
        at = 0
        for number, (item, size) in enumerate(zip(row, sizes[b], strict=True), start=1):
            place = slice(at, at + size)
            fields[0, b, place] = (item.prompt + item.answer)[:size]
            begin = at + (0 if prompts else max(0, len(item.prompt) - 1))
            fields[1, b, begin : at + size - 1] = fields[0, b, begin + 1 : at + size]
            fields[2, b, place] = np.arange(size)
            fields[3, b, place] = number
            at += size
    tokens, labels, index, segment = torch.from_numpy(fields).unbind()
    kind = torch.where(segment > 0, Kind.TEXT, Kind.PAD)
    return Positions(tokens[..., None], kind, index, segment, labels=labels[..., None])


def frequent_tokens(answers: list[Answer], count: int) -> Tensor:
    """The ``count`` tokens that answers hold most often, most frequent first; then the smallest ids that none holds."""
    said = np.fromiter((token for item in answers for token in item.answer), np.int64)
    times = np.bincount(said, minlength=max(count, 1))
    return torch.from_numpy(np.argsort(-times, kind="stable")[:count].copy())


def split(answers: list[Answer], dev_every: int) -> tuple[list[Answer], list[Answer]]:
    """Training and held-out answers."""
    dev = answers[:: max(1, dev_every)]
    held_out = set(dev)
    return [answer for answer in answers if answer not in held_out], dev
