"""Schedules of how far an objective looks ahead, as data: phases, each with its k and its length.

A recipe says one of::

    curriculum: forward                                     1, 2, ..., k, the same number of steps each
    curriculum: reverse                                     k, ..., 2, 1
    curriculum: {name: forward, plateau: 200}               each until the held-out loss stands still for 200 steps
    curriculum: [{k: 1, steps: 500}, {k: 2, share: 0.3}, {k: 4, weights: [1, 1, 0.5, 0.5]}]
    curriculum: [{k: 4, drawn: true}]                       a depth of 1 to 4 at every step, each as often

The first two are those of Aynetdinov and Akbik (arXiv:2505.22757) with steps for epochs: of E steps, step e has
k = min(k_max, floor(e / (E / k_max)) + 1), or max(1, k_max - floor(e / (E / k_max))).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from speech_mtp.plugins import nearest

Spec = str | Mapping[str, Any] | Sequence[Mapping[str, Any]]
"""What a recipe says."""
LENGTHS = ("steps", "share", "plateau")
EPSILON = 1e-6
"""Steps; so much sums of shares may be off."""


@dataclass(frozen=True)
class Phase:
    """Look ``k`` tokens ahead, for so many ``steps``, for a ``share`` of the steps of the run, or until the held-out
    loss has not fallen by ``gain`` nats for ``plateau`` steps. ``weights`` are those of the k offsets (None: the
    objective's own). ``drawn``: every step looks from 1 to ``k`` tokens ahead, as chance will have it. The last phase
    has no length."""

    k: int
    steps: int | None = None
    share: float | None = None
    plateau: int | None = None
    gain: float = 0.01
    weights: tuple[float, ...] | None = None
    drawn: bool = False


@dataclass(frozen=True)
class Place:
    """Where a run is: in ``phase`` since step ``begun``, whose ``best`` held-out loss was measured after step
    ``since``."""

    phase: int = 0
    begun: float = 0.0
    best: float = math.inf
    since: float = 0.0


# -- pure functions -------------------------------------------------------------------------------------------------
def forward(k_max: int, **length: Any) -> list[Phase]:
    """1, 2, ..., ``k_max``; ``length`` of each phase, by default the same share."""
    return _closed([Phase(k, **(length or {"share": 1 / k_max})) for k in range(1, k_max + 1)])


def reverse(k_max: int, **length: Any) -> list[Phase]:
    """``k_max``, ..., 2, 1; arguments as for :func:`forward`."""
    return _closed([Phase(k, **(length or {"share": 1 / k_max})) for k in range(k_max, 0, -1)])


def at_step(phases: Sequence[Phase], place: Place, number: int, steps: int | None) -> Place:
    """``place`` at step ``number`` of ``steps``: phases that are over by then are left."""
    while place.phase + 1 < len(phases):
        phase = phases[place.phase]
        if phase.plateau is not None:
            break
        end = place.begun + (phase.steps if phase.steps is not None else (phase.share or 0.0) * (steps or 0))
        if number + EPSILON < end:
            break
        place = Place(place.phase + 1, end, since=end)
    return place


def observed(phases: Sequence[Phase], place: Place, number: int, loss: float) -> Place:
    """``place`` after the held-out ``loss`` was measured, ``number`` steps from the start: a phase that waits for a
    plateau is left if its best loss is ``plateau`` steps old."""
    phase = phases[place.phase]
    if phase.plateau is None or place.phase + 1 == len(phases):
        return place
    if loss < place.best - phase.gain:
        return replace(place, best=loss, since=number)
    return place if number - place.since < phase.plateau else Place(place.phase + 1, number, since=number)


def as_drawn(phase: Phase, number: int) -> Phase:
    """``phase`` at step ``number``: the same in every process and after a stop."""
    if not phase.drawn:
        return phase
    k = random.Random(number).randint(1, phase.k)
    return replace(phase, k=k, weights=None if phase.weights is None else phase.weights[:k])


def phases_of(spec: Spec | None, k_max: int) -> list[Phase]:
    """What ``spec`` says (None: ``k_max`` all the time). Raises ValueError where it cannot be."""
    if spec is None:
        return [Phase(k_max)]
    if isinstance(spec, str | Mapping):
        length = {} if isinstance(spec, str) else {key: value for key, value in spec.items() if key != "name"}
        name = spec if isinstance(spec, str) else spec.get("name")
        if name not in ("forward", "reverse"):
            raise ValueError(f"There is no curriculum {name!r}; name 'forward' or 'reverse', or list the phases.")
        _check_entries(length, {"plateau", "gain"})
        phases = (forward if name == "forward" else reverse)(k_max, **length)
    else:
        phases = [_phase(entry) for entry in spec]
    _check(phases, k_max)
    return phases


def _closed(phases: list[Phase]) -> list[Phase]:
    return [*phases[:-1], replace(phases[-1], steps=None, share=None, plateau=None)]


def _phase(entry: Mapping[str, Any]) -> Phase:
    _check_entries(entry, {f.name for f in fields(Phase)})
    if "k" not in entry:
        raise ValueError(f"A phase of the curriculum has no k: {dict(entry)}; say how far it looks ahead.")
    weights = entry.get("weights")
    return Phase(**{**entry, "weights": None if weights is None else tuple(weights)})


def _check_entries(given: Mapping[str, Any], known: set[str]) -> None:
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"A phase of the curriculum has no setting {key!r}; {nearest(str(key), known)}.")
        if not all(isinstance(number, int | float) for number in (value if key == "weights" else [value])):
            raise ValueError(f"{key} of a phase of the curriculum is {value!r}, which is not a number; change it.")


def _check(phases: list[Phase], k_max: int) -> None:
    if not phases:
        raise ValueError("The curriculum has no phase; list one at least, or leave it out.")
    for number, phase in enumerate(phases, start=1):
        given = [name for name in LENGTHS if getattr(phase, name) is not None]
        if not 1 <= phase.k <= k_max:
            raise ValueError(f"Phase {number} of the curriculum has k {phase.k}; it must be between 1 and {k_max}.")
        if len(given) != (number < len(phases)):
            raise ValueError(
                f"Phase {number} of the curriculum must have {'one' if number < len(phases) else 'none'} of "
                f"{', '.join(LENGTHS)}: each phase but the last ends."
            )
        if any(not getattr(phase, name) > 0 for name in given) or phase.gain < 0:
            raise ValueError(f"Phase {number} of the curriculum has a length that is not positive; change it.")
        if phase.weights is not None and (len(phase.weights) != phase.k or min(phase.weights) < 0):
            raise ValueError(f"Phase {number} of the curriculum needs {phase.k} weights, none of them negative.")
    if sum(phase.share or 0.0 for phase in phases) > 1 + EPSILON:
        raise ValueError("The shares of the curriculum are more than the whole run; their sum must be at most 1.")


# -- the schedule of a run ------------------------------------------------------------------------------------------
class Curriculum(nn.Module):
    """The phases that ``spec`` says, up to ``k_max``, and the place of a run in them, which its checkpoints keep.

    A run that goes on with another number of steps goes on with the place that it was saved at. Raises ValueError for a
    spec that cannot be.
    """

    def __init__(self, spec: Spec | None, k_max: int) -> None:
        super().__init__()
        self.phases, self.k_max, self.steps = phases_of(spec, k_max), k_max, None
        self.place, self._number = Place(), 0

    steps: int | None

    def bind(self, length: int, steps: int | None) -> None:
        """For rows of ``length`` tokens and a run of ``steps``. Raises ValueError where they do not fit."""
        if self.k_max > length:
            raise ValueError(f"k is {self.k_max}, but the rows have {length} tokens; make k smaller, or rows longer.")
        if steps is None and any(phase.share for phase in self.phases):
            raise ValueError("The curriculum has shares of a run whose length is not known; give its phases steps.")
        self.steps = steps

    @property
    def phase(self) -> Phase:
        """As it is at this step."""
        return as_drawn(self.phases[self.place.phase], self._number)

    def at_step(self, number: int) -> None:
        self._number = number
        self.place = at_step(self.phases, self.place, number, self.steps)

    def observe(self, number: int, loss: float) -> None:
        self.place = observed(self.phases, self.place, number, loss)

    def get_extra_state(self) -> Tensor:
        """The place as four numbers."""
        p = self.place
        return torch.tensor([p.phase, p.begun, p.best, p.since], dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        phase, *rest = state.tolist()
        if phase >= len(self.phases):
            raise ValueError(f"The run was saved in phase {phase + 1:.0f}, and the curriculum has {len(self.phases)}.")
        self.place = Place(int(phase), *rest)
