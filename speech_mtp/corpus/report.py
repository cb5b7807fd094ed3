"""What a corpus holds: hours, voices, phonemes, words, and what was refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from speech_mtp.corpus.coverage import speakable_word
from speech_mtp.corpus.manifest import ManifestEntry, read_manifest, read_rejects
from speech_mtp.corpus.sentences import frequent_words, words_of
from speech_mtp.text.phonemes import BLANK, SYMBOLS

RARE = 100


def report(folder: Path, text_rejects: Counter[str], coverage_words: int) -> dict[str, Any]:
    """The figures of the corpus in ``folder`` as a JSON object.

    ``words`` tells how many of the ``coverage_words`` most frequent English words are spoken in the train split,
    and the share of those that make sense aloud (:func:`speech_mtp.corpus.coverage.speakable_word`).
    """
    rows = read_manifest(folder)
    rejects = read_rejects(folder)
    return {
        "hours": _hours(rows),
        "utterances": len(rows),
        "speakers": len({row.voice for row in rows}),
        "seconds": _spread([row.seconds for row in rows]),
        "chars_per_second": _spread([len(row.text) / row.seconds for row in rows]),
        "sentences": {split: len({r.text for r in rows if r.split == split}) for split in ("train", "dev")},
        "voices": {voice: _voice([r for r in rows if r.voice == voice]) for voice in sorted({r.voice for r in rows})},
        "sources": {name: _source([r for r in rows if r.source == name]) for name in _names(rows)},
        "phonemes": _phonemes(rows),
        "words": _words(rows, coverage_words),
        "rejected_text": dict(text_rejects.most_common()),
        "rejects": dict(Counter(r.reason for r in rejects).most_common()),
        "rejected_audio": dict(Counter(f"{r.voice}: {r.reason}" for r in rejects).most_common()),
    }


def distributions(folder: Path) -> dict[str, Any]:
    """What a picture of the corpus in ``folder`` shows: seconds, characters a second and levels (dBFS, of recordings
    before they were levelled) of all utterances, and minutes of each voice, the most first."""
    rows = read_manifest(folder)
    minutes: dict[str, float] = {}
    for row in rows:
        minutes[row.voice] = minutes.get(row.voice, 0.0) + row.seconds / 60
    return {
        "seconds": [row.seconds for row in rows],
        "chars_per_second": [len(row.text) / row.seconds for row in rows],
        "level_dbfs": [row.level_dbfs for row in rows if row.level_dbfs is not None],
        "minutes": dict(sorted(minutes.items(), key=lambda item: -item[1])),
    }


def _spread(values: list[float]) -> dict[str, float]:
    """Smallest, fifth percentile, median, 95th percentile, largest."""
    names = ("min", "p5", "median", "p95", "max")
    found = np.percentile(values, [0, 5, 50, 95, 100]).tolist() if values else []
    return {name: round(value, 2) for name, value in zip(names, found, strict=False)}


def _names(rows: list[ManifestEntry]) -> list[str]:
    return sorted({row.source for row in rows if row.source is not None})


def _source(rows: list[ManifestEntry]) -> dict[str, Any]:
    return {
        "licence": rows[0].licence,
        "hours": _hours(rows),
        "utterances": len(rows),
        "speakers": len({row.voice for row in rows}),
    }


def _hours(rows: list[ManifestEntry]) -> float:
    return round(sum(row.seconds for row in rows) / 3600, 3)


def _voice(rows: list[ManifestEntry]) -> dict[str, Any]:
    seconds = sum(row.seconds for row in rows)
    chars = sum(len(row.text) for row in rows)
    return {
        "hours": _hours(rows),
        "utterances": len(rows),
        "chars_per_second": round(chars / seconds, 1),
        "licence": rows[0].licence,
    }


def _phonemes(rows: list[ManifestEntry]) -> dict[str, Any]:
    counts = Counter("".join(row.phonemes for row in rows if row.split == "train"))
    symbols = [symbol for symbol in SYMBOLS if symbol != BLANK]
    return {
        "covered": sum(counts[s] > 0 for s in symbols),
        "of": len(symbols),
        "rare": {s: counts[s] for s in symbols if counts[s] < RARE},
    }


def _words(rows: list[ManifestEntry], count: int) -> dict[str, Any]:
    spoken = {word for row in rows if row.split == "train" for word in words_of(row.text)}
    frequent = frequent_words(count) if count else []
    sensible = [word for word in frequent if speakable_word(word)]
    missing = [word for word in sensible if word not in spoken]
    return {
        "distinct": len(spoken),
        "frequent": len(frequent),
        "frequent_spoken": sum(word in spoken for word in frequent),
        "sensible": len(sensible),
        "sensible_spoken": len(sensible) - len(missing),
        "missing": missing[:50],
    }
