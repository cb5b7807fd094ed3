"""How much memory a piece of work needs at its peak, beyond what was in use before."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """``with PeakMemory(device) as peak: ...`` then ``peak.bytes``.

    On a GPU what its allocator handed out; on Linux the resident memory of the process, for which free memory is given
    back first; None where neither is known.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes: int | None = None

    def __enter__(self) -> Self:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before: int | None = torch.cuda.memory_allocated(self.device)
        else:
            self._before = _resident() if _reset() else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is None:
            return
        after = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _resident("VmHWM")
        self.bytes = after - self._before


def _reset() -> bool:
    """Give free memory back and forget the old peak; False where that cannot be done."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        _RESET.write_text("5", encoding="ascii")
    except (OSError, AttributeError):
        return False
    return True


def _resident(field: str = "VmRSS") -> int:
    line = next(line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])
