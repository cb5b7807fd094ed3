"""How a listener hears sound that comes in pieces: the one definition of a gap. Knows no stream and no clock."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Playback:
    """A player. It begins ``cushion_s`` after the first sound has come and plays ``speed`` times as fast; sound that
    comes when it has run dry was late, which is a gap.

    ``first``: when the first sound came. ``heard_s`` of sound have come. ``until``: when they will have been played.
    Times are seconds of the caller's clock.
    """

    cushion_s: float = 0.0
    speed: float = 1.0
    first: float | None = None
    heard_s: float = 0.0
    gaps: int = 0
    until: float = 0.0

    def hear(self, now: float, seconds: float) -> None:
        """``seconds`` of sound have come; nothing, if there are none."""
        if not seconds:
            return
        if self.first is None:
            self.first, self.until = now, now + self.cushion_s
        elif now > self.until:
            self.gaps += 1
        self.until = max(self.until, now) + seconds / self.speed
        self.heard_s += seconds
