"""Alignment by what the teacher itself knows: where each of its phonemes ends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from speech_mtp.text.phonemes import PAUSES, Unit, parse


def unit_ends_ms(units: Sequence[Unit], phonemes: str, ends_s: NDArray[np.float64]) -> list[int] | None:
    """Milliseconds at which each of ``units`` ends, of the seconds ``ends_s`` at which each character of ``phonemes``
    does. None where the teacher read other phonemes than these.

    A stress mark or a space belongs to the phoneme after it; of pauses in a row, which are one unit, the last counts.
    """
    symbols: list[str] = []
    ends: list[float] = []
    for char, end in zip(phonemes, ends_s, strict=True):
        for unit in parse(char):
            if unit.is_pause and symbols and symbols[-1] in PAUSES:
                symbols[-1], ends[-1] = max(symbols[-1], unit.phoneme, key=PAUSES.index), end
            elif symbols or not unit.is_pause:
                symbols.append(unit.phoneme)
                ends.append(end)
    if symbols != [unit.phoneme for unit in units]:
        return None
    return [round(1000 * end) for end in ends]


def unit_at_frames(ends_ms: Sequence[int], frames: int, rate_hz: float) -> Tensor:
    """The unit ``[F]`` in the middle of each of ``frames`` frames; the last goes on to the end, and the first frame
    speaks the first."""
    middles = (torch.arange(frames, dtype=torch.float64) + 0.5) * (1000 / rate_hz)
    found = torch.searchsorted(torch.tensor(ends_ms, dtype=torch.float64), middles, right=True)
    found = found.clamp(max=len(ends_ms) - 1)
    found[:1] = 0
    return found
