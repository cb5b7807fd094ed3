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


class Progress:
    """Counts work of ``total`` ``unit`` (None: nobody knows how many), called ``what``."""

    def __init__(self, what: str, unit: str = "it", total: int | None = None) -> None:
        self._what, self._unit, self._total, self._done = what, unit, total, 0
        self._begun = self._told = monotonic()
        self._bar = tqdm(total=total, desc=what, unit=f" {unit}") if sys.stderr.isatty() else None

    def advance(self, count: int = 1, note: str = "") -> None:
        """``count`` more are done; ``note`` is told with them."""
        self._done += count
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        elif monotonic() - self._told >= EVERY_S:
            self._told = monotonic()
            print(self._line(note), file=sys.stderr, flush=True)

    def _line(self, note: str) -> str:
        parts = [f"{self._what}: {self._done}" + ("" if self._total is None else f" of {self._total}")]
        parts += [note] * bool(note)
        if self._total is not None:
            left_s = (self._told - self._begun) / max(1, self._done) * (self._total - self._done)
            parts.append(f"{left_s:.0f} s left")
        return ", ".join(parts)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def progress(items: Iterable[Item], what: str, unit: str = "it") -> Iterator[Item]:
    """The ``items``, one after another; ``what`` is done with them, and ``unit`` is what one of them is."""
    counted = Progress(what, unit, len(items) if isinstance(items, Sized) else None)
    try:
        for item in items:
            yield item
            counted.advance()
    finally:
        counted.close()


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
