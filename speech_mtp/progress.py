"""How far long work is: a bar on a terminal, otherwise plain lines on standard error, now and then."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sized
from time import monotonic
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
EVERY_S = 30.0
"""Seconds between plain lines."""


def progress(items: Iterable[Item], what: str, unit: str = "it") -> Iterator[Item]:
    """The ``items``, one after another; ``what`` is done with them, and ``unit`` is what one of them is."""
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, unit=f" {unit}")
        return
    total = len(items) if isinstance(items, Sized) else None
    begun = told = monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = monotonic()
        if now - told >= EVERY_S:
            told = now
            print(_line(what, done, total, now - begun), file=sys.stderr, flush=True)


def _line(what: str, done: int, total: int | None, spent_s: float) -> str:
    if total is None:
        return f"{what}: {done}"
    return f"{what}: {done} of {total}, {spent_s / done * (total - done):.0f} s left"


class Telling:
    """``telling(what)`` says what is going on: over the same line of a terminal, otherwise on a line of its own if the
    last one is ``EVERY_S`` old."""

    def __init__(self) -> None:
        self._told = monotonic()

    def __call__(self, what: str) -> None:
        if sys.stderr.isatty():
            print(f"\r{what:<60}", end="", file=sys.stderr, flush=True)
        elif monotonic() - self._told >= EVERY_S:
            self._told = monotonic()
            print(what, file=sys.stderr, flush=True)
