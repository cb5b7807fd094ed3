"""One server for the tests that only ask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from speech_mtp.serving.settings import Settings
from tests.serving.hearing import FakeRecogniser
from tests.serving.running import Running, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = Settings(voices_dir=tmp_path_factory.mktemp("voices"))
    with serving(settings, recogniser=FakeRecogniser("Hello there!")) as running:
        yield running
