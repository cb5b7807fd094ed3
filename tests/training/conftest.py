"""What tests of stages and of codecs share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speech_mtp import hub
from speech_mtp.corpus.store import AudioStore, AudioStoreWriter
from speech_mtp.lm.fingerprint import fingerprint_of
from tests.text_tiny import tiny_folder

RATE, HOP = 24_000, 240


@pytest.fixture
def backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A tiny instruct model in the folder ``backbone``, which is found whatever backbone is asked for; its source."""
    folder = tiny_folder(tmp_path / "backbone")
    monkeypatch.setattr(hub, "resolve_backbone", lambda *_: folder)
    return {"sha256": fingerprint_of(folder)}


@pytest.fixture(scope="module")
def humming_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two voices that hum, six times each for a second and more; two sentences of each are held out."""
    folder = tmp_path_factory.mktemp("humming")
    writer = AudioStoreWriter(folder)
    for i in range(12):
        voice, hertz = ("low", 110.0) if i % 2 else ("high", 220.0)
        samples = RATE + 2_400 * i
        wave = 0.3 * np.sign(np.sin(2 * np.pi * hertz * np.arange(samples) / RATE))
        pitch = np.full(-(-samples // HOP), hertz, np.float32)
        text, split = f"Hello {'abcdef'[i // 2]}.", "dev" if i >= 8 else "train"
        writer.append(str(i), voice, text, "həlˈO", split, wave.astype(np.float32), pitch)
    writer.close()
    return folder


@pytest.fixture(scope="module")
def humming(humming_folder: Path) -> AudioStore:
    return AudioStore([humming_folder])
