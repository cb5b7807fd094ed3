"""Recordings and an aligner without any model, for the tests of the import: tones, and a codec of random weights."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from speech_mtp import hub
from speech_mtp.codecs.decoupled import Decoupled
from speech_mtp.text.phonemes import SYMBOLS

SPEAKERS = ("p0", "Ann", "Ann/../é B")
ANY = {"min_agreement": -99.0, "worst_second": -99.0}
"""Rules for pieces that a random codec meets."""


def aligner(folder: Path) -> Path:
    """A tiny codec with a phoneme head, saved in ``folder``."""
    hub.save_codec(Decoupled.tiny(len(SYMBOLS)), folder)
    return folder


def tone(seconds: float, rate: int = 24_000) -> np.ndarray:
    return (0.3 * np.sin(2 * np.pi * 150 * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def table(folder: Path, rows: list[dict[str, str]]) -> Path:
    """A CSV file of ``rows`` in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "table.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["audio", "text", "speaker"])
        writer.writeheader()
        writer.writerows(rows)
    return folder / "table.csv"


def tones(folder: Path, texts: list[str]) -> Path:
    """A table of texts, each spoken as a tone of its length, in different formats, rates and numbers of channels."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i, text in enumerate(texts):
        rate, channels = (8000, 16_000, 22_050, 44_100, 48_000)[i % 5], 1 + i % 2
        name = f"{i:02}.{('wav', 'flac')[i % 2]}"
        soundfile.write(folder / name, np.stack([tone(len(text) / 15, rate)] * channels, 1), rate)
        rows.append({"audio": name, "text": text, "speaker": SPEAKERS[i % 3]})
    return table(folder, rows)


def recipe(out: Path, table: Path, aligner: Path, **more: Any) -> dict[str, Any]:
    """Settings of a corpus of the recordings of ``table``."""
    source = {"name": "csv_table", "file": str(table), "speaker": "speaker"}
    plan = {"name": "me", "source": source, "licence": "CC0", "credit": "By me.", "dev_fraction": 0.2}
    settings = {
        "out": str(out),
        "recordings": [plan],
        "g2p": "sine_teacher:Vowels",
        "aligner": str(aligner),
        "pieces": ANY,
        "coverage_words": 0,
        "workers": 1,
        "pitch": False,
    }
    return settings | more
