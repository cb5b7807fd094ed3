"""Memory that is free goes back to the system.

Two things keep it. Whoever has left is a ring of objects that refer to each other. Python frees rings only when it
searches all objects for them, which is seldom in a process that holds half a million: here what the server is made of
is left out of the search, and the rest is searched every minute. And the C library of Linux keeps what was freed for
what comes next; streams come and go in all sizes, so what it keeps is scattered and grows for hours: half a gigabyte
in fifty minutes of four clients (``recipes/tiny_en/RESULTS.md``).
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys

EVERY_S = 60.0


async def keep_small(every_s: float = EVERY_S) -> None:
    """Give free memory back from time to time, for ever; what there is at first is not searched."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    gc.collect()
    gc.freeze()  # what there is now stays as long as the server
    try:
        while True:
            await asyncio.sleep(every_s)
            gc.collect()
            if trim is not None:
                await asyncio.to_thread(trim, 0)
    finally:
        gc.unfreeze()
