"""Settings of the whole suite: which tests this machine can run, and how hypothesis searches."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # as many processes as processors: one thread each, theirs too
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    # Processes that fill one new cache of Numba at once can leave it broken, and then break down.
    kept = Path(__file__).parents[1] / ".pytest_cache" / "numba" / os.environ["PYTEST_XDIST_WORKER"]
    os.environ["NUMBA_CACHE_DIR"] = str(kept)

import torch
from hypothesis import settings

# A busy machine is not a slow function; in CI the same examples are tried every time.
settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A folder with the tokenizer of bytes."""
    from speech_mtp.lm.byte_tokens import write_byte_tokenizer

    folder = tmp_path / "bytes"
    folder.mkdir()
    write_byte_tokenizer(folder)
    return folder


CLOCKS = {"time.monotonic": time.monotonic, "time.perf_counter": time.perf_counter}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """A test may stop the clock of one module (its name ``time``), not that of the process: the loops of running
    servers would sleep for hours."""
    result = yield
    now = {"time.monotonic": time.monotonic, "time.perf_counter": time.perf_counter}
    changed = [name for name, clock in CLOCKS.items() if now[name] is not clock]
    assert not changed, f"{changed[0]} of the whole process was replaced; replace the name time of one module."
    return result


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
