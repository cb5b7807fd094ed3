"""What tests of stages share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from speech_mtp import hub
from speech_mtp.lm.fingerprint import fingerprint_of
from tests.text_tiny import tiny_folder


@pytest.fixture
def backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A tiny instruct model in the folder ``backbone``, which is found whatever backbone is asked for; its source."""
    folder = tiny_folder(tmp_path / "backbone")
    monkeypatch.setattr(hub, "resolve_backbone", lambda *_: folder)
    return {"sha256": fingerprint_of(folder)}
