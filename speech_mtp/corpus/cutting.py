"""Long recordings -> pieces: cut where a silence lies between two words, preferably where a sentence ends.

    words      |the| |end.|                 |Then| |he|
    sound      ~~~~~~~~~~~~~~               ~~~~~~~~~~~~
    piece      ......  <- speech -> + tail   lead + <- speech ->  ....

This module knows neither audio files nor phonemes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from speech_mtp.corpus.teachers.base import SAMPLE_RATE

_FRAME = SAMPLE_RATE // 100  # 10 ms
_BLOCK = 500  # frames: with its neighbours, the place whose noise is measured
_RANGE_DB, _ABOVE_FLOOR_DB, _BELOW_SPEECH_DB, _NOTHING_DB = 40.0, 6.0, 12.0, -85.0
_SLACK_S = 0.08
"""CTC fires within two codec frames of a sound."""
_NO_MARK, _CLAUSE, _SHORT = 1.5, 0.5, 3.0
"""Costs of a cut after a word without a mark and after a clause, and of a piece that is too short; that of a piece
twice as long as the middle of the range is 1."""


class PieceRules(BaseModel):
    """How recordings become utterances. One of at most ``max_seconds`` without a long pause stays whole.

    No piece is longer than ``max_seconds``; one is shorter than ``min_seconds`` only where long pauses leave no choice.
    ``min_silence_s`` is the shortest silence to cut at. ``min_agreement`` is how well sound and text must fit
    (:func:`speech_mtp.corpus.align.agreement`), ``worst_second`` how badly, in nats a frame, the worst second may fit:
    words that are not spoken show there. A recording of more than ``longest_minutes`` is refused.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    min_seconds: float = Field(default=2.0, ge=0)
    max_seconds: float = Field(default=12.0, gt=0)
    min_silence_s: float = Field(default=0.15, ge=0.05)
    min_agreement: float = Field(default=0.25, le=1)
    worst_second: float = Field(default=-7.5, le=0)
    longest_minutes: float = Field(default=60.0, gt=0)

    @model_validator(mode="after")
    def _ordered(self) -> PieceRules:
        if self.min_seconds >= self.max_seconds:
            raise ValueError(f"max_seconds is {self.max_seconds}; set it above min_seconds ({self.min_seconds}).")
        return self


@dataclass(frozen=True)
class HeardWord:
    """A word of a text and the seconds in which its sounds were found."""

    text: str
    start_s: float
    stop_s: float


@dataclass(frozen=True)
class Piece:
    """Words ``first`` to ``last`` (without it) and the seconds ``start_s`` to ``stop_s`` that hold them."""

    first: int
    last: int
    start_s: float
    stop_s: float

    @property
    def seconds(self) -> float:
        return self.stop_s - self.start_s


@dataclass(frozen=True)
class _Border:
    """A place to cut before word ``word``: the silence after the speech before it, the silence before the speech after
    it (the same one, unless sounds without text lie between), and what a cut costs."""

    word: int
    before: tuple[float, float]
    after: tuple[float, float]
    cost: float

    @property
    def pause_s(self) -> float:
        return self.after[1] - self.before[0]


def silences(wave: NDArray[np.float32], min_silence_s: float) -> NDArray[np.float64]:
    """Seconds ``[N, 2]`` in which ``wave [S]`` at 24 kHz is silent for ``min_silence_s`` or more.

    Silent is what lies 40 dB below the loud parts around it, or little above the noise there, whichever is louder.
    """
    frames = wave[: len(wave) // _FRAME * _FRAME].reshape(-1, _FRAME).astype(np.float64)
    level = 10 * np.log10((frames**2).mean(axis=1) + 1e-12)
    blocks = [slice(at, at + _BLOCK) for at in range(0, len(level), _BLOCK)]
    quiet = [level[block] < _threshold(level[max(0, block.start - _BLOCK) : block.stop + _BLOCK]) for block in blocks]
    silent = np.concatenate([[False], *quiet, [False]])
    edges = np.flatnonzero(silent[1:] != silent[:-1]).reshape(-1, 2) / 100
    found: NDArray[np.float64] = edges[edges[:, 1] - edges[:, 0] >= min_silence_s - 1e-9]
    return found


def _threshold(level: NDArray[np.float64]) -> float:
    """Below which of the ``level [F]`` (dB) is silence. Stretches of nothing at all tell nothing of the noise."""
    heard = level[level > _NOTHING_DB]
    if not len(heard):
        return 0.0
    floor, speech = np.percentile(heard, [5, 95])
    return float(min(max(speech - _RANGE_DB, floor + _ABOVE_FLOOR_DB), speech - _BELOW_SPEECH_DB))


def cut(
    words: list[HeardWord],
    quiet: NDArray[np.float64],
    seconds: float,
    rules: PieceRules,
    max_pause_s: float,
    edges_s: tuple[float, float],
) -> list[Piece]:
    """The pieces of a recording of ``seconds``, whose silences are ``quiet [N, 2]`` (:func:`silences`).

    ``edges_s`` is the silence that a piece may keep before and after its speech. A pause longer than ``max_pause_s``
    is never inside a piece. A piece is longer than allowed where there is no silence to cut at.
    """
    borders = _borders(words, quiet, seconds, rules.min_silence_s)
    whole = _piece(borders[0], borders[-1], edges_s)
    if whole.seconds <= rules.max_seconds and all(border.pause_s <= max_pause_s for border in borders[1:-1]):
        return [whole]
    chosen = _cheapest(borders, rules, max_pause_s, edges_s)
    return [_piece(a, b, edges_s) for a, b in pairwise(chosen)]


def _borders(words: list[HeardWord], quiet: NDArray[np.float64], seconds: float, min_silence_s: float) -> list[_Border]:
    """The start, every gap between two words that holds a silence, and the end: in order, with sound between them."""
    start, *inner, end = (_border(i, words, quiet, seconds, min_silence_s) for i in range(len(words) + 1))
    assert start is not None
    assert end is not None
    if end.before[0] <= start.after[1]:  # the text was found in silence: it is not that of the recording
        return [
            _Border(0, (0.0, 0.0), (0.0, 0.0), 0.0),
            _Border(len(words), (seconds, seconds), (seconds, seconds), 0.0),
        ]
    borders = [start]
    for border in inner:
        if border is not None and borders[-1].after[1] < border.before[0] and border.after[1] < end.before[0]:
            borders.append(border)
    return [*borders, end]


def _border(
    i: int, words: list[HeardWord], quiet: NDArray[np.float64], seconds: float, min_silence_s: float
) -> _Border | None:
    """The cut before word ``i``; None where there is no silence. The two ends need none."""
    start = words[i - 1].stop_s - _SLACK_S if i else 0.0
    stop = words[i].start_s + _SLACK_S if i < len(words) else seconds
    overlap = np.minimum(quiet[:, 1], stop) - np.maximum(quiet[:, 0], start)
    held = quiet[overlap >= min_silence_s - 1e-9].tolist()
    if i == 0:
        held = held or [(0.0, 0.0)]
    elif i == len(words):
        held = held or [(seconds, seconds)]
    cost = _cost(words[i - 1].text) if 0 < i < len(words) else 0.0
    return _Border(i, tuple(held[0]), tuple(held[-1]), cost) if held else None


def _cost(word: str) -> float:
    """Of a cut after ``word``."""
    if word.endswith((".", "!", "?")):
        return 0.0
    return _CLAUSE if word.endswith((",", ";", ":")) else _NO_MARK


def _piece(first: _Border, last: _Border, edges_s: tuple[float, float]) -> Piece:
    """From ``first`` to ``last`` with some of the silences around it, at most half of each."""
    start = first.after[1] - min(edges_s[0], (first.after[1] - first.after[0]) / 2)
    stop = last.before[0] + min(edges_s[1], (last.before[1] - last.before[0]) / 2)
    return Piece(first.word, last.word, start, stop)


def _cheapest(
    borders: list[_Border], rules: PieceRules, max_pause_s: float, edges_s: tuple[float, float]
) -> list[_Border]:
    """The way from the first border to the last that costs least: pieces of middle length that end with sentences.

    A piece without a border inside may be of any length; all others are as long as allowed, without long pauses.
    """
    best, previous = [0.0], [0]
    for j in range(1, len(borders)):
        options = []
        for i in range(j - 1, -1, -1):
            seconds = _piece(borders[i], borders[j], edges_s).seconds
            if i < j - 1 and (seconds > rules.max_seconds or borders[i + 1].pause_s > max_pause_s):
                break
            options.append((best[i] + borders[j].cost + _length_cost(seconds, rules), i))
        cost, i = min(options)
        best.append(cost)
        previous.append(i)
    way = [len(borders) - 1]
    while way[-1]:
        way.append(previous[way[-1]])
    return [borders[i] for i in reversed(way)]


def _length_cost(seconds: float, rules: PieceRules) -> float:
    middle = (rules.min_seconds + rules.max_seconds) / 2
    return (seconds / middle - 1) ** 2 + (_SHORT if seconds < rules.min_seconds else 0.0)
