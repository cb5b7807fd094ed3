"""Memory that is free goes back to the system.

The C library of Linux keeps what was freed for what comes next. Streams come and go in all sizes, so what it keeps is
scattered and grows for hours: half a gigabyte in fifty minutes of four clients (``recipes/tiny_en/RESULTS.md``).
"""

from __future__ import annotations

import asyncio
import ctypes
import sys

EVERY_S = 60.0


async def keep_small(every_s: float = EVERY_S) -> None:
    """Give free memory back from time to time, for ever; nothing where the C library cannot."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    while trim is not None:
        await asyncio.sleep(every_s)
        await asyncio.to_thread(trim, 0)
