"""A corpus that is built in a process of its own, which is killed in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from speech_mtp.corpus.build import CorpusConfig

HERE = Path(__file__).parent
SCRIPT = """
import sys
from speech_mtp.corpus.build import CorpusConfig, build_corpus
if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as file:
        build_corpus(CorpusConfig.model_validate_json(file.read()))
"""


def kill_when(happens: Callable[[], bool], config: CorpusConfig, folder: Path) -> None:
    """Build ``config`` by a script in ``folder``; kill it as soon as something happens, and wait until no worker is
    left, as none may outlive its parent."""
    (folder / "config.json").write_text(config.model_dump_json())
    (folder / "make.py").write_text(SCRIPT)
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    process = subprocess.Popen(
        [sys.executable, str(folder / "make.py"), str(folder / "config.json")],
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,
    )
    _wait(happens, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    _wait(lambda: not _group_alive(process.pid))


def _wait(condition: Callable[[], bool], process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + 240  # a busy machine starts processes slowly
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, "the build ended before it could be killed"
        time.sleep(0.05)


def _group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
