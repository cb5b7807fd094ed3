"""Settings of the whole suite: which tests this machine can run, and how hypothesis searches."""

from __future__ import annotations

import os

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as processors: one thread each, theirs too
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from hypothesis import settings

# A busy machine is not a slow function; in CI the same examples are tried every time.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
