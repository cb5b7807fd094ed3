"""Memory for weights that are read from end to end at every step: in large pages, where the system gives them.

A decoder of 66 MB in pages of 4 KB misses the processor's table of pages all the time; in pages of 2 MB a step takes a
tenth less (``recipes/text_mtp/RESULTS.md``). Linux gives them to private memory that asks for them.
"""

from __future__ import annotations

import mmap
import threading

import torch
from torch import Tensor

PAGE = 1 << 21
CHUNK = 16 * PAGE
ALIGNED = 64
"""Bytes: a line of the cache."""

_lock = threading.Lock()
_rest = torch.empty(0, dtype=torch.uint8)  # of the newest chunk


def settled(x: Tensor) -> Tensor:
    """A copy of the bytes ``x`` (uint8, on a CPU) in large pages, one behind the other; ``x`` itself, in one piece,
    where there are none. A chunk of memory is freed when nothing in it is used any more; the newest is kept while it
    has room left."""
    global _rest
    if not x.numel():
        return x
    size = -(-x.numel() // ALIGNED) * ALIGNED
    with _lock, torch.inference_mode(False):  # others may write into the chunk in another mode
        if size > len(_rest):
            found = _chunk(max(CHUNK, size))
            if found is None:
                return x.contiguous()
            place, rest = found[:size], found[size:]
            if len(rest) > len(_rest):
                _rest = rest
        else:
            place, _rest = _rest[:size], _rest[size:]
        if not len(_rest):
            _rest = torch.empty(0, dtype=torch.uint8)  # a view of nothing would hold the chunk
        return place[: x.numel()].view(x.shape).copy_(x)


def _chunk(size: int) -> Tensor | None:
    """``size`` bytes that begin with a page; None where the system does not take the wish for large ones."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    try:
        memory = mmap.mmap(-1, size + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except (OSError, ValueError):
        return None
    found = torch.frombuffer(memory, dtype=torch.uint8)
    return found[-found.data_ptr() % PAGE :][:size]
