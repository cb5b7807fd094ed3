"""Which phoneme every frame of an utterance speaks, as an aligned code corpus tells."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from speech_mtp.corpus.codes import load_codes
from speech_mtp.text.phonemes import parse


class FramePhonemes:
    """Of the utterances of a code corpus, whatever codec made it: what counts is who aligned it."""

    padding = -100.0  # what a cross entropy leaves out

    def __init__(self, folder: Path) -> None:
        self.folder, self.corpus = folder, load_codes(folder)
        self.rows = {row.id: index for index, row in enumerate(self.corpus.rows)}

    def of(self, id: str, frames: int) -> Tensor:
        """The phonemes ``[frames]`` of the utterance ``id``, ids of :data:`speech_mtp.text.phonemes.SYMBOLS`; frames of
        another rate, or of speech at another speed, take that of the nearest one."""
        index = self.rows[id]
        _, unit = self.corpus.item(index)
        phonemes = torch.tensor([one.id for one in parse(self.corpus.rows[index].phonemes)])
        at = ((torch.arange(frames) + 0.5) / frames * len(unit)).long().clamp(max=len(unit) - 1)
        return phonemes[unit[at]]
