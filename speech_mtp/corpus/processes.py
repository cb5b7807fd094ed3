"""Work in processes, each on one core: a corpus is made of many small jobs that know nothing of each other."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch

from speech_mtp import plugins

Result = TypeVar("Result")


def as_spec(plugin: str | dict[str, Any]) -> str:
    """A plug-in's name or mapping as text, which goes to other processes and is a key of :func:`plugged`."""
    return json.dumps(plugin, sort_keys=True)


@cache
def plugged(folder: str, spec: str) -> Any:
    """The plug-in of ``folder`` that :func:`as_spec` was given, built once in a process."""
    return plugins.build(folder, json.loads(spec))


def in_processes(function: Callable[..., Result], jobs: Iterable[tuple[Any, ...]], workers: int) -> Iterator[Result]:
    """``function`` of each job's arguments, as they get ready.

    Jobs are taken from the iterable as processes become free: two for each process are in memory.
    """
    with one_thread_each(), TemporaryDirectory() as aside:
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker, initargs=(aside,))
        running: set[Future[Result]] = set()
        try:
            for job in jobs:
                running.add(pool.submit(function, *job))
                if len(running) >= 2 * workers:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def start_worker(aside: str) -> None:
    """One thread; and what Numba compiles for librosa is kept in a folder of its own in ``aside``: processes that fill
    one new cache at once can leave it broken, and break down for good."""
    torch.set_num_threads(1)
    os.environ["NUMBA_CACHE_DIR"] = os.path.join(aside, str(os.getpid()))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Processes started inside compute on one thread each, so that one process a core fills the machine."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before
