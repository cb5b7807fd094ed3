"""Forced alignment: which text unit each codec frame speaks, from the phoneme CTC of the codec or of another one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torchaudio
from torch import Tensor

from speech_mtp.audio import at_seconds

LONGEST = 15_000
"""Frames that are aligned at once: ten minutes. torchaudio fails where frames times states pass 2^31."""
_TAKEN, _KEPT, _WILDCARD_NATS = 0.75, 0.5, 3.0
"""Shares of the phonemes that a step should hold, and how much less likely than the likeliest label the wildcard is."""


@dataclass(frozen=True)
class Firings:
    """Where the likeliest CTC path of a text speaks each of its units: frames ``starts[u]`` to ``ends[u]``, both with.

    ``margins [F]`` is how much less likely (in nats, at most 0) the path's label of a frame is than the likeliest one.
    They depend on the voice and the noise as well as on the text: see :func:`agreement`.
    """

    starts: list[int]
    ends: list[int]
    margins: Tensor


def firings(log_probs: Tensor, phonemes: Tensor) -> Firings | None:
    """``log_probs [F, V]`` (blank 0), ``phonemes [U]``; None when the audio is too short for its phonemes.

    More than ``LONGEST`` frames are aligned in steps, as time and memory grow with F x U. A step takes fewer phonemes
    than its frames should hold, with a wildcard for the others, and keeps the first of them::

        frames      |------------------- LONGEST -------------------|
        phonemes    |-- kept --|-- left to the next --|-- wildcard -|
    """
    steps: list[tuple[int, Firings]] = []
    frame = unit = 0
    while len(log_probs) - frame > LONGEST:
        window = log_probs[frame : frame + LONGEST]
        expected = (len(phonemes) - unit) * LONGEST / (len(log_probs) - frame)
        taken, kept = int(_TAKEN * expected), int(_KEPT * expected)
        wildcard = window.max(1, keepdim=True).values - _WILDCARD_NATS
        text = torch.cat([phonemes[unit : unit + taken], torch.tensor([window.shape[1]])])
        found = _fired(torch.cat([window, wildcard], 1), text)
        if found is None or kept == 0:
            return None
        stop = found.ends[kept - 1] + 1
        steps.append((frame, Firings(found.starts[:kept], found.ends[:kept], found.margins[:stop])))
        frame, unit = frame + stop, unit + kept
    last = _fired(log_probs[frame:], phonemes[unit:])
    if last is None:
        return None
    steps.append((frame, last))
    return Firings(
        [first + start for first, found in steps for start in found.starts],
        [first + end for first, found in steps for end in found.ends],
        torch.cat([found.margins for _, found in steps]),
    )


def _fired(log_probs: Tensor, phonemes: Tensor) -> Firings | None:
    repeats = int((phonemes[1:] == phonemes[:-1]).sum())
    if len(phonemes) + repeats > len(log_probs) or len(phonemes) == 0:
        return None
    path, scores = torchaudio.functional.forced_align(log_probs[None].float(), phonemes[None].int(), blank=0)
    starts: list[int] = []
    ends: list[int] = []
    previous = 0
    for frame, label in enumerate(path[0].tolist()):
        if label and label != previous:
            starts.append(frame)
            ends.append(frame)
        elif label:
            ends[-1] = frame
        previous = label
    return Firings(starts, ends, scores[0] - log_probs.max(1).values)


def agreement(log_probs: Tensor, phonemes: Tensor, margins: Tensor) -> float:
    """How well sound ``[F, V]`` and text ``[U]`` fit: 1 if nothing else was heard, about 0 for a text of other words.

    ``margins [F]`` are those of the text; the same phonemes backwards tell what margins any text would have there.
    """
    backwards = firings(log_probs, phonemes.flip(0))
    return 1.0 if backwards is None else 1.0 - float(margins.sum() / backwards.margins.sum().clamp(max=-1e-6))


def unit_of_frame(log_probs: Tensor, phonemes: Tensor) -> Tensor | None:
    """``log_probs [F, V]`` (blank 0), ``phonemes [U]`` -> the unit of every frame ``[F]``, monotone and starting at 0.

    CTC fires once somewhere inside a unit and is blank around it; the border between two units is put halfway between
    the end of one firing and the start of the next. None when the utterance is too short for its phonemes.
    """
    fired = firings(log_probs, phonemes)
    if fired is None:
        return None
    starts, ends = fired.starts, fired.ends
    borders = [(ends[u] + 1 + starts[u + 1] + 1) // 2 for u in range(len(starts) - 1)]
    units = torch.zeros(len(log_probs), dtype=torch.long)
    units[torch.tensor(borders, dtype=torch.long)] = 1
    return units.cumsum(0)


def at_frame_rate(unit: Tensor, from_hz: float, to_hz: float, frames: int) -> Tensor:
    """Units of frames ``[F]`` at ``from_hz`` -> those at the middles of ``frames`` frames at ``to_hz``.

    The first one stays 0; where frames are longer than units, units are left out.
    """
    found = at_seconds(unit, (torch.arange(frames) + 0.5) / to_hz, from_hz)
    found[:1] = 0
    return found
