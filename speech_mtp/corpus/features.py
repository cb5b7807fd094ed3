"""What a recogniser's encoder makes of the utterances of a store, for codecs that learn from it.

``features.f16`` holds the vectors of every utterance one after another, in the principal components of some of them,
each with variance 1; ``rows.jsonl`` says where each lies, ``projection.safetensors`` what the components are, and
``features.json`` whose they are. Rows are appended after their data, so that a folder cut off by a kill is valid up to
its last whole row.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from speech_mtp.corpus.manifest import JsonLines, read_lines
from speech_mtp.files import check_inputs_of, open_at, replacing

ROWS, VECTORS, PROJECTION, INPUTS = "rows.jsonl", "features.f16", "projection.safetensors", "features.json"


@dataclass(frozen=True)
class Projection:
    """``mean [D]`` and ``basis [D, K]``: a vector's components are ``(vector - mean) @ basis``."""

    mean: Tensor
    basis: Tensor

    @classmethod
    def of(cls, vectors: Tensor, components: int) -> Projection:
        """The first principal components of ``vectors [N, D]``, scaled to variance 1. Raises ``ValueError`` where there
        are not as many."""
        if components > min(vectors.shape):
            raise ValueError(
                f"{vectors.shape[0]} vectors of {vectors.shape[1]} numbers have no {components} components; take fewer."
            )
        mean = vectors.double().mean(0)
        _, spread, directions = torch.linalg.svd(vectors.double() - mean, full_matrices=False)
        deviation = spread[:components] / len(vectors) ** 0.5
        return cls(mean.float(), (directions[:components].T / deviation.clamp(min=1e-9)).float())

    def __call__(self, vectors: Tensor) -> Tensor:
        return (vectors - self.mean) @ self.basis


@dataclass(frozen=True)
class FeatureRow:
    """``count`` vectors from ``start`` on."""

    id: str
    start: int
    count: int


class FeatureWriter:
    """Appends to a folder; opening an existing one goes on after its last whole row, with the same projection."""

    def __init__(self, folder: Path, inputs: dict[str, Any]) -> None:
        """``inputs`` say what the vectors are; others than those of a folder that holds some raise ``ValueError``."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / PROJECTION
        self.projection = Projection(**load_file(path)) if path.exists() else None
        check_inputs_of(folder / INPUTS, inputs, made=self.projection is not None)
        if self.projection is None:
            (folder / ROWS).unlink(missing_ok=True)
        self._log = JsonLines(folder / ROWS)
        self.folder, self.rows = folder, _read_rows(folder)
        self._end = self.rows[-1].start + self.rows[-1].count if self.rows else 0
        width = 0 if self.projection is None else self.projection.basis.shape[1]
        self._vectors = open_at(folder / VECTORS, 2 * self._end * width)

    def project_by(self, projection: Projection) -> None:
        """Before the first row."""
        with replacing(self.folder / PROJECTION) as path:
            save_file({"mean": projection.mean, "basis": projection.basis.contiguous()}, path)
        self.projection = projection

    def append(self, heard: Iterable[tuple[str, Tensor]]) -> None:
        """Utterances by their ids, each with its vectors ``[T, D]`` as the recogniser gave them."""
        assert self.projection is not None, "project_by comes first"
        new = []
        for id, vectors in heard:
            self.projection(vectors).to(torch.float16).numpy().tofile(self._vectors)
            new.append(FeatureRow(id, self._end, len(vectors)))
            self._end += len(vectors)
        self._vectors.flush()
        self._log.append(map(asdict, new))
        self.rows += new

    def __enter__(self) -> FeatureWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._vectors.close()
        self._log.close()


class Features:
    """Reads what :class:`FeatureWriter` wrote."""

    padding = 0.0

    def __init__(self, folder: Path) -> None:
        rows = _read_rows(folder)
        if not rows:
            raise FileNotFoundError(f"{folder} holds no features; run the features stage first.")
        self.folder, self.rows = folder, {row.id: row for row in rows}
        self.dim = load_file(folder / PROJECTION)["basis"].shape[1]
        flat = np.memmap(folder / VECTORS, "<f2", mode="r")
        self._vectors = flat[: len(flat) // self.dim * self.dim].reshape(-1, self.dim)

    def of(self, id: str, frames: int) -> Tensor:
        """The vectors of the utterance ``id``, drawn out or together evenly to ``frames``: ``[frames, dim]``."""
        row = self.rows[id]
        track = torch.from_numpy(self._vectors[row.start : row.start + row.count].astype(np.float32))
        out: Tensor = torch.nn.functional.interpolate(track.T[None], size=frames, mode="linear", align_corners=False)
        return out[0].T


def _read_rows(folder: Path) -> list[FeatureRow]:
    """The whole rows of a folder."""
    path = folder / ROWS
    return [FeatureRow(**values) for values in read_lines(path)] if path.exists() else []
