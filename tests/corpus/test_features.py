"""Features of a recogniser beside a store: written once, found again, and learnt from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from speech_mtp.corpus.features import ROWS, VECTORS, Features, FeatureWriter, Projection

INPUTS = {"recogniser": "ear", "components": 4}


def vectors(seed: int, count: int = 40, dim: int = 6) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)) * torch.arange(1.0, dim + 1)


def filled(folder: Path, count: int = 3) -> None:
    with FeatureWriter(folder, INPUTS) as writer:
        if writer.projection is None:
            writer.project_by(Projection.of(vectors(0, 200), 4))
        writer.append((f"u{i}", vectors(i, 10 + i)) for i in range(len(writer.rows), count))


def test_components_are_uncorrelated_of_variance_one_and_the_largest() -> None:
    found = Projection.of(vectors(0, 5_000), 3)(vectors(0, 5_000))
    assert torch.allclose(found.T.cov(), torch.eye(3), atol=1e-3)
    assert float(found.mean(0).abs().max()) < 1e-4
    largest = Projection.of(vectors(0, 5_000), 1).basis[:, 0]
    assert int(largest.abs().argmax()) == 5


def test_more_components_than_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="no 7 components"):
        Projection.of(vectors(0), 7)


def test_what_was_written_is_found_again_at_any_rate(tmp_path: Path) -> None:
    filled(tmp_path)
    features = Features(tmp_path)
    expected = Projection.of(vectors(0, 200), 4)(vectors(2, 12))
    assert torch.allclose(features.of("u2", 12), expected, atol=5e-3)
    assert torch.allclose(features.of("u2", 6), expected.view(6, 2, 4).mean(1), atol=5e-3)
    assert features.of("u2", 31).shape == (31, 4)


def test_a_folder_cut_off_by_a_kill_goes_on_after_its_last_whole_row(tmp_path: Path) -> None:
    filled(tmp_path)
    with (tmp_path / VECTORS).open("ab") as file:
        file.write(b"\x01" * 77)
    lines = (tmp_path / ROWS).read_text()
    (tmp_path / ROWS).write_text(lines[:-5])
    filled(tmp_path, 4)
    features = Features(tmp_path)
    expected = Projection.of(vectors(0, 200), 4)
    assert list(features.rows) == ["u0", "u1", "u2", "u3"]
    for i in range(4):
        assert torch.allclose(features.of(f"u{i}", 10 + i), expected(vectors(i, 10 + i)), atol=5e-3)


def test_rows_without_a_projection_begin_again(tmp_path: Path) -> None:
    """The projection is written before the first row, so such rows belong to nothing."""
    filled(tmp_path)
    (tmp_path / "projection.safetensors").unlink()
    assert FeatureWriter(tmp_path, INPUTS).rows == []


def test_another_recogniser_is_refused(tmp_path: Path) -> None:
    filled(tmp_path)
    with pytest.raises(ValueError, match="made with recogniser 'ear', not 'nose'"):
        FeatureWriter(tmp_path, {**INPUTS, "recogniser": "nose"})
    assert len(Features(tmp_path).rows) == 3


def test_no_features_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="features stage"):
        Features(tmp_path)


def test_vectors_are_kept_in_half_precision(tmp_path: Path) -> None:
    filled(tmp_path)
    assert (tmp_path / VECTORS).stat().st_size == 2 * 4 * (10 + 11 + 12)
    assert np.isfinite(np.fromfile(tmp_path / VECTORS, "<f2")).all()
