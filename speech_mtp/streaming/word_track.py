"""When each word is spoken, from where the talker's pointer stands after each group."""

from __future__ import annotations

from speech_mtp.lm.units import WordUnits
from speech_mtp.types import WordTime


class WordTrack:
    """Pointer positions of one sentence -> when each word was spoken (seconds of audio)."""

    def __init__(self, offset_s: float, frame_rate_hz: float, frames_per_group: int) -> None:
        self.offset_s, self.rate, self.group = offset_s, frame_rate_hz, frames_per_group
        self.starts = [0.0]  # frame at which each unit begins
        self.groups = 0
        self.told = 0

    def move(self, pointer: int, words: list[WordUnits]) -> list[WordTime]:
        """One more group ended at ``pointer``: the words that have been spoken whole since the last call."""
        before, known = self.groups * self.group, len(self.starts) - 1
        moved = pointer - known
        self.starts += [before + self.group * (i + 1) / moved for i in range(moved)]
        self.groups += 1
        done: list[WordTime] = []
        while self.told < len(words) and words[self.told][2] <= pointer:
            word = words[self.told]
            start, end = (self.offset_s + self.starts[u] / self.rate for u in word[1:])
            done.append(WordTime(word[0], round(start, 3), round(end, 3)))
            self.told += 1
        return done
