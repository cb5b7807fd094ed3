"""Whether drafting pays: what a row gains by a drafted step against what such a step costs.

This only ever affects speed. Without chance the text is the same whatever is decided; with it the law is, but draws
differ, so a measured cost makes sampled runs differ from one time to the next.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from statistics import fmean, median


class Payoff:
    """Draft for ``trial`` steps at a time, and rest for ``rest`` plain steps whenever the last trial did not pay.

    A trial pays if the tokens per row and step exceed ``cost``, the time of a drafted step in units of a plain one.
    None: the two are timed, and so the first steps of all are plain. ``clock`` gives seconds.
    """

    def __init__(
        self,
        cost: float | None = None,
        trial: int = 16,
        rest: int = 64,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if trial < 1 or rest < 1:
            raise ValueError(
                f"A trial of {trial} steps and a rest of {rest} are too short; both need one step or more."
            )
        if cost is not None and cost <= 0:
            raise ValueError(f"cost is {cost}; it is the time of a drafted step in units of a plain one.")
        self._cost, self.trial, self.rest, self._clock = cost, trial, rest, clock
        self._drafting = cost is not None
        self._left = trial if self._drafting else min(4, rest)
        self._gains: list[float] = []
        self._times: dict[bool, deque[float]] = {kind: deque(maxlen=trial) for kind in (False, True)}
        self._began: float | None = None

    @property
    def cost(self) -> float:
        """Time of a drafted step in units of a plain one, as given or measured."""
        return self._cost if self._cost is not None else median(self._times[True]) / median(self._times[False])

    def start(self) -> bool:
        """A step begins. Returns whether it shall draft."""
        self._began = self._clock()
        return self._drafting

    @property
    def running(self) -> bool:
        """Whether a step has begun that is not finished."""
        return self._began is not None

    def finish(self, gained: float) -> None:
        """The step is over; a row gained so many tokens on average."""
        assert self._began is not None, "no step has begun"
        self._times[self._drafting].append(self._clock() - self._began)
        self._began = None
        self._gains.append(gained)
        self._left -= 1
        if self._left == 0:
            self._drafting = not self._drafting or fmean(self._gains) > self.cost
            self._left = self.trial if self._drafting else self.rest
            self._gains = []
