"""Processes of a corpus keep apart what Numba compiles for them."""

from __future__ import annotations

import os
import time
from pathlib import Path

from speech_mtp.corpus.processes import in_processes


def whereabouts(both: Path) -> tuple[int, str, bool]:
    (both / str(os.getpid())).touch()
    until = time.monotonic() + 60
    while len(list(both.iterdir())) < 2 and time.monotonic() < until:  # one must not do the work of both
        time.sleep(0.05)
    folder = os.environ["NUMBA_CACHE_DIR"]
    Path(folder).mkdir(parents=True, exist_ok=True)
    return os.getpid(), folder, Path(folder).is_dir()


def test_every_process_has_a_cache_of_its_own_which_goes_with_it(tmp_path: Path) -> None:
    found = list(in_processes(whereabouts, [(tmp_path,)] * 4, 2))
    assert len(found) == 4
    assert len({pid for pid, _, _ in found}) == len({folder for _, folder, _ in found}) == 2
    assert len({(pid, folder) for pid, folder, _ in found}) == 2
    assert all(there for _, _, there in found)
    assert not any(Path(folder).exists() for _, folder, _ in found)
