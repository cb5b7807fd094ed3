"""A stopwatch that tells reading a prompt from decoding its answer."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch


def now(device: torch.device) -> float:
    """Seconds on a clock, when ``device`` has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass
class Watch:
    """Runs from its making. At the first step of an answer it notes how many ``tokens`` there are, after ``seconds``:
    every program then has read the prompt and chosen at least one token, so programs compare."""

    device: torch.device
    seconds: float = 0.0
    tokens: int = 0
    began: float = field(init=False)

    def __post_init__(self) -> None:
        self.began = now(self.device)

    def note(self, tokens: int) -> None:
        """``tokens`` new ones are there; only the first call counts."""
        if not self.tokens:
            self.seconds, self.tokens = now(self.device) - self.began, tokens
