"""Pictures are written whole, and a misspelt term is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from speech_mtp.evaluation.plots import spectrograms, training_curves

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
