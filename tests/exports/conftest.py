"""Code that ``transformers`` runs out of a folder is copied first: here into the test's own folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import dynamic_module_utils


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "modules"
