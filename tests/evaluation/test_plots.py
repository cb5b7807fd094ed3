"""Pictures are written whole, and a misspelt term is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from speech_mtp.evaluation.plots import corpus_distributions, spectrograms, training_curves

pytest.importorskip("matplotlib", reason="needs the extra 'eval'")


def test_curves_are_drawn_from_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"step": i, "loss": 1 / (i + 1), "dev/loss": 0.5}) + "\n" for i in range(5)))
    training_curves(log, ["loss"], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="loss"):
        training_curves(log, ["los"], tmp_path / "other.png")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["curves.png", "log.jsonl"]


def test_spectrograms_are_drawn(tmp_path: Path) -> None:
    spectrograms({"a": torch.randn(24_000), "b": torch.randn(12_000)}, 24_000, tmp_path / "mel.png")
    assert (tmp_path / "mel.png").stat().st_size > 5000


def test_what_a_corpus_holds_is_drawn(tmp_path: Path) -> None:
    found = {
        "seconds": [2.0, 3.5],
        "chars_per_second": [14.0, 15.0],
        "level_dbfs": [],
        "minutes": {"a": 0.1, "b": 0.05},
    }
    corpus_distributions(found, tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
