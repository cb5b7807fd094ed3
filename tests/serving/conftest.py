"""One server for the tests that only ask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.serving.running import Running, serving


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    with serving() as running:
        yield running
