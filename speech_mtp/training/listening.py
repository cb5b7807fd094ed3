"""The stage ``features``: a recogniser hears a store, and what its encoder makes of it is kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torchaudio.functional as AF
from torch import Tensor

from speech_mtp.corpus.features import FeatureWriter, Projection
from speech_mtp.corpus.store import SAMPLE_RATE, AudioStore
from speech_mtp.frontends.base import SAMPLE_RATE as HEARD_RATE
from speech_mtp.frontends.base import Recogniser
from speech_mtp.progress import progress
from speech_mtp.training.stages import FeaturesRun


def listen(stage: FeaturesRun, recogniser: Recogniser) -> dict[str, object]:
    """Let ``recogniser`` hear all utterances of ``stage`` that it has not heard yet, but for those that are too long
    for it; the principal components are those of ``stage.fit_on`` utterances from all over the store. Returns what to
    report. Raises ValueError for utterances of one name, and where the folder was made otherwise."""
    store = AudioStore(stage.data)
    _check_names(store)
    longest = recogniser.longest_features_s * SAMPLE_RATE
    heard = np.array([i for i, row in enumerate(store.rows) if row.samples <= longest], int)
    if not len(heard):
        raise ValueError(
            f"run.data has no utterance of at most {recogniser.longest_features_s:g} s, which is all it hears."
        )
    inputs = {"recogniser": recogniser.name, "components": stage.components, "fit_on": stage.fit_on}
    with FeatureWriter(stage.out, inputs) as writer:
        if writer.projection is None:
            some = np.unique(np.linspace(0, len(heard) - 1, min(stage.fit_on, len(heard))).round().astype(int))
            batches = _heard(recogniser, store, heard[some], stage.batch, "components")
            vectors = torch.cat([vectors for batch in batches for _, vectors in batch])
            writer.project_by(Projection.of(vectors, stage.components))
        known = {row.id for row in writer.rows}
        missing = np.array([i for i in heard if store.rows[i].id not in known], int)
        by_length = missing[np.argsort([store.rows[i].samples for i in missing], kind="stable")]
        for batch in _heard(recogniser, store, by_length, stage.batch, "features"):
            writer.append(batch)
        return {"out": str(stage.out), "utterances": len(writer.rows), "too_long": len(store) - len(heard)}


def _check_names(store: AudioStore) -> None:
    counts = Counter(row.id for row in store.rows)
    name, count = max(counts.items(), key=lambda pair: pair[1])
    if count > 1:
        raise ValueError(f"{count} utterances of run.data are called {name}; features are found by name, so use one.")


def _heard(
    recogniser: Recogniser, store: AudioStore, rows: Sequence[int] | np.ndarray, batch: int, what: str
) -> Iterator[list[tuple[str, Tensor]]]:
    """``batch`` of ``rows`` at a time: their ids, and their vectors ``[T, D]``."""
    for first in progress(range(0, len(rows), batch), what, "batch"):
        some = [int(row) for row in rows[first : first + batch]]
        waves = [AF.resample(store.wave(row), SAMPLE_RATE, HEARD_RATE).numpy() for row in some]
        ids = [store.rows[row].id for row in some]
        yield list(zip(ids, map(torch.from_numpy, recogniser.features(waves)), strict=True))
