"""What is known of the frames of utterances besides their sound, and which terms of a codec's loss learn from it.

A track is named as the setting of the stage that names its folder: ``run.features``, ``run.aligned``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

TERMS = {"features": "distil", "aligned": "frame"}
"""Of each track, the term that learns from it."""
STAGES = {"features": "features", "aligned": "encode"}
"""And the stage that makes it."""


class Track(Protocol):
    """Values of the frames of utterances, which are found by their ids in ``rows``."""

    @property
    def folder(self) -> Path: ...
    @property
    def rows(self) -> Mapping[str, Any]: ...
    @property
    def padding(self) -> float:
        """What stands behind the last frame."""

    def of(self, id: str, frames: int) -> Tensor:
        """The values of the utterance ``id`` in so many frames, ``[frames, ...]``."""


Tracks = Mapping[str, Track]


def check_tracks(tracks: Tracks, weights: object, keep_codes: bool, on_device: bool) -> None:
    """Raises ``ValueError`` where a track has no term with a weight, or such a term no track, and where settings make
    it useless."""
    for name, term in TERMS.items():
        weight = getattr(weights, term)
        if weight and name not in tracks:
            raise ValueError(
                f"task.weights.{term} learns from run.{name}; name the folder that the stage {STAGES[name]} makes."
            )
        if name in tracks and not weight:
            raise ValueError(f"run.{name} is read by task.weights.{term} alone, which is 0; leave it out, or set that.")
        if name in tracks and keep_codes:
            raise ValueError(f"Codes that stand still learn nothing of run.{name}; leave task.keep_codes out.")
        if name in tracks and on_device:
            raise ValueError(f"Audio on the device comes without run.{name}; set task.on_device to false.")


def check_ids(tracks: Tracks, ids: Sequence[str]) -> None:
    """Raises ``ValueError`` for utterances that a track does not know."""
    for name, track in tracks.items():
        missing = [id for id in ids if id not in track.rows]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(ids)} utterances, {missing[0]} among them, are not in {track.folder} "
                f"(run.{name}); run the stage {STAGES[name]} on this data."
            )


def padded(track: Track, utterances: Iterable[tuple[str, int]], longest: int) -> Tensor:
    """The values of ``utterances``, ids with their frames: ``[B, longest, ...]``."""
    rows = [track.of(id, frames) for id, frames in utterances]
    fill = [0, 0] * (rows[0].ndim - 1)
    return torch.stack([F.pad(row, (*fill, 0, longest - len(row)), value=track.padding) for row in rows])
