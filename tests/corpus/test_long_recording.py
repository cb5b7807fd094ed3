"""Sentences of the shipped voice in one long recording with pauses: each piece gets exactly its words.

``pytest -n0 -m slow -s tests/corpus/test_long_recording.py`` prints how many do; SENTENCES=40 asks for more of them.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speech_mtp import audio, hub
from speech_mtp.corpus.checks import AudioRules
from speech_mtp.corpus.cutting import PieceRules
from speech_mtp.corpus.manifest import ManifestEntry, Reject
from speech_mtp.corpus.recorded import Imported, RecordingJob, Treatment, import_recording
from speech_mtp.corpus.recordings.base import Recording
from speech_mtp.streaming.feed import sentences
from speech_mtp.streaming.pipeline import speak

DEV = Path(__file__).parents[2] / "recipes/corpus/dev_sentences.txt"
COUNT = int(os.environ.get("SENTENCES", "6"))
WRITTEN = [line for line in DEV.read_text("utf-8").splitlines() if len(line) > 30]
LINES, OTHERS = (WRITTEN[first :: len(WRITTEN) // COUNT][:COUNT] for first in (0, 1))
RATE, BETWEEN_S = 44_100, 0.6


def joined(voice: str, path: Path) -> list[tuple[float, float, str]]:
    """Write a stereo recording of the lines with noise; from when to when which normalised sentence is spoken."""
    model = hub.load()
    waves, spans, at = [], [], 0.5
    for line in LINES:
        wave = torch.cat([chunk.wave for chunk in speak(model, line, voice=voice)])
        loud = torch.nonzero(wave.abs() > 0.02).flatten()
        wave = audio.resample(wave[loud[0] : loud[-1]], model.codec.spec.sample_rate, RATE)
        spans.append((at, at + len(wave) / RATE, " ".join(sentences(line))))
        waves += [wave, torch.zeros(round(BETWEEN_S * RATE))]
        at = spans[-1][1] + BETWEEN_S
    whole = torch.cat([torch.zeros(RATE // 2), *waves]).numpy()
    whole += np.random.default_rng(0).normal(0, 3e-4, len(whole)).astype(np.float32)
    soundfile.write(path, np.stack([whole, 0.5 * whole], 1), RATE)
    return spans


def imported(path: Path, text: str, out: Path) -> Imported:
    treatment = Treatment(out, '"hibari"', "tiny-en", PieceRules(), AudioRules())
    return import_recording(RecordingJob("me-a", "me", Recording("a", path, text), "me", "CC0", 0.0), treatment)


def heard(row: ManifestEntry, spans: list[tuple[float, float, str]]) -> str | None:
    """The sentences that a piece holds by the clock; None where it begins or ends inside of one."""
    assert row.start_s is not None
    start, stop = row.start_s, row.start_s + row.seconds
    touched = [(a, b, text) for a, b, text in spans if b > start + 0.1 and a < stop - 0.1]
    whole = all(a >= start - 0.05 and b <= stop + 0.05 for a, b, _ in touched)
    return " ".join(text for _, _, text in touched) if whole else None


@pytest.mark.slow
@pytest.mark.parametrize("voice", ["heart", "drew"])
def test_each_piece_gets_exactly_its_words(voice: str, tmp_path: Path) -> None:
    spans = joined(voice, tmp_path / "long.wav")
    text = " ".join(LINES)
    items = imported(tmp_path / "long.wav", text, tmp_path).items
    rows = [item for item in items if isinstance(item, ManifestEntry)]
    exact = [row for row in rows if heard(row, spans) == row.text]
    inside = [row for row in rows if heard(row, spans) is None]
    print(f"{voice}: {len(rows)} of {len(items)} pieces kept, {len(exact)} exact, {len(inside)} cut inside a sentence")
    assert len(exact) + len(inside) == len(rows) == len(items)
    assert " ".join(row.text for row in rows) == " ".join(words for _, _, words in spans)
    assert len(exact) >= 0.5 * len(rows)
    assert all(2 <= row.seconds <= 12 for row in rows)
    assert all(row.agreement is not None and row.agreement > 0.5 for row in rows)
    voiced = [hz for row in rows for hz in row.f0_hz or [] if hz]
    assert {"heart": 150, "drew": 70}[voice] < np.median(voiced) < {"heart": 300, "drew": 130}[voice]


@pytest.mark.slow
def test_another_text_is_refused(tmp_path: Path) -> None:
    joined("heart", tmp_path / "long.wav")
    items = imported(tmp_path / "long.wav", " ".join(OTHERS), tmp_path).items
    print(f"another text: {sum(isinstance(item, ManifestEntry) for item in items)} of {len(items)} pieces kept")
    assert all(isinstance(item, Reject) for item in items)
    assert {item.reason for item in items if isinstance(item, Reject)} <= {
        "text does not match",
        "no silence to cut at",
    }
