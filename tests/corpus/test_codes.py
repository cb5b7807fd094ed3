"""Code corpora on disk: what was saved comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from speech_mtp.corpus.codes import CodecFacts, CodeCorpus, CodeRow, load_codes, save_codes


def corpus() -> CodeCorpus:
    torch.manual_seed(0)
    rows = [CodeRow(f"r{i}", "v", f"text {i}.", "a b", "train", start, 7) for i, start in enumerate((0, 7, 14))]
    unit = torch.tensor([0, 0, 1, 1, 2, 5, 5] * 3, dtype=torch.int16)
    frames = torch.stack([torch.randint(1000, (21,)), torch.randint(200, (21,))]).to(torch.int16)
    return CodeCorpus(rows, frames, unit, torch.randn(3, 4).half(), CodecFacts((1000, 200), 25.0, 4, (1.0, 0.5)))


@pytest.mark.parametrize("timbre_dim", [4, 0])
def test_what_is_saved_comes_back(timbre_dim: int, tmp_path: Path) -> None:
    made = corpus()
    made.timbre = made.timbre[:, :timbre_dim]
    save_codes(made, tmp_path)
    found = load_codes(tmp_path)
    assert found.rows == made.rows
    assert found.codec == made.codec
    for name in ("frames", "unit", "timbre"):
        assert torch.equal(getattr(found, name), getattr(made, name)), name
