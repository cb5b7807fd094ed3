"""Forced alignment: which text unit each codec frame speaks, from the phoneme CTC of the codec or of another one."""

from __future__ import annotations

import torch
import torchaudio
from torch import Tensor

from speech_mtp.audio import at_seconds


def unit_of_frame(log_probs: Tensor, phonemes: Tensor) -> Tensor | None:
    """``log_probs [F, V]`` (blank 0), ``phonemes [U]`` -> the unit of every frame ``[F]``, monotone and starting at 0.

    CTC fires once somewhere inside a unit and is blank around it; the border between two units is put halfway between
    the end of one firing and the start of the next. None when the utterance is too short for its phonemes.
    """
    repeats = int((phonemes[1:] == phonemes[:-1]).sum())
    if len(phonemes) + repeats > len(log_probs) or len(phonemes) == 0:
        return None
    path, _ = torchaudio.functional.forced_align(log_probs[None].float(), phonemes[None].int(), blank=0)
    fired = path[0].tolist()
    starts: list[int] = []
    ends: list[int] = []
    previous = 0
    for frame, label in enumerate(fired):
        if label and label != previous:
            starts.append(frame)
            ends.append(frame)
        elif label:
            ends[-1] = frame
        previous = label
    borders = [0] + [(ends[u] + 1 + starts[u + 1] + 1) // 2 for u in range(len(starts) - 1)]
    units = torch.zeros(len(fired), dtype=torch.long)
    units[torch.tensor(borders[1:], dtype=torch.long)] = 1
    return units.cumsum(0)


def at_frame_rate(unit: Tensor, from_hz: float, to_hz: float, frames: int) -> Tensor:
    """Units of frames ``[F]`` at ``from_hz`` -> those at the middles of ``frames`` frames at ``to_hz``.

    The first one stays 0; where frames are longer than units, units are left out.
    """
    found = at_seconds(unit, (torch.arange(frames) + 0.5) / to_hz, from_hz)
    found[:1] = 0
    return found
