"""How many threads torch computes with: one setting, counted from what this process may really use.

More threads than processors wait for each other. Speech is made of many small products: a second thread makes it no
faster on an idle machine and many times slower beside other work (measured in ``recipes/tiny_en/RESULTS.md``), so
speech takes one.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

VARIABLE = "SPEECH_MTP_THREADS"
MOST = 1024
SPEECH = 1
"""Threads of speech where nothing is said."""
CGROUP = Path("/sys/fs/cgroup")


def processors(cgroup: Path = CGROUP) -> int:
    """Processors that this process may keep busy: those it may run on, within the quota of its control group (v2
    ``cpu.max``, v1 ``cpu.cfs_quota_us``); at least one."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, _quota(cgroup))))


def _quota(cgroup: Path) -> float:
    """Processors by the quota of the control group; infinity where there is none."""
    for name, period in (("cpu.max", None), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            words = (cgroup / name).read_text().split()
            words += (cgroup / period).read_text().split() if period else []
            quota, length = float(words[0]), float(words[1])
        except (OSError, ValueError, IndexError):  # no such file, or "max"
            continue
        if quota > 0 and length > 0:
            return quota / length
    return math.inf


def number_of_threads(asked: int | None = None, default: int | None = None) -> int:
    """``asked``, else the environment variable ``SPEECH_MTP_THREADS``, else ``default`` (None: :func:`processors`, or
    ``OMP_NUM_THREADS`` where whoever started this process set that lower).

    Raises ValueError for anything but a positive number.
    """
    if asked is None and os.environ.get(VARIABLE):
        try:
            asked = int(os.environ[VARIABLE])
        except ValueError as error:
            raise ValueError(f"{VARIABLE} is {os.environ[VARIABLE]!r}; set it to a number of threads.") from error
    if asked is not None and not 1 <= asked <= MOST:
        raise ValueError(f"The number of threads is {asked}; it must be from 1 to {MOST}.")
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return asked or default or min(processors(), int(limit) if limit.isdecimal() and int(limit) else processors())


def use_threads(asked: int | None = None, default: int | None = None) -> int:
    """Let torch compute with :func:`number_of_threads` from now on, in the whole process; how many they are."""
    import torch

    count = number_of_threads(asked, default)
    torch.set_num_threads(count)
    return count
