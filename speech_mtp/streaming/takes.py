"""Several takes of one sentence, of which the best is sounded.

Which is the best, the codec's own phoneme head says: it hears in the codes of every take how well the phonemes of the
text are told. That costs next to nothing, for it reads codes, not sound.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from speech_mtp.lm.bundle import SpeechModel
from speech_mtp.types import Codes, Finish

NEXT_TAKE = 7_368_787
"""Added to the seed with every take; the first has that of a sentence that is said once."""
MOST = 16


@dataclass
class Take:
    """Groups ``[1, T, C]`` that one row has said, where its pointer then stood, and why it ended."""

    said: list[tuple[Tensor, list[int]]] = field(default_factory=list)
    finish: Finish | None = None


def check_best_of(model: SpeechModel, best_of: int) -> None:
    """Raise ValueError where ``best_of`` takes cannot be compared."""
    if not 1 <= best_of <= MOST:
        raise ValueError(f"best_of is {best_of}; it is a number of takes from 1 to {MOST}.")
    if best_of > 1 and not (model.codec.spec.num_phonemes and model.lm.layout.points):
        raise ValueError(f"Model {model.name} cannot tell which of several takes is the best; leave best_of out.")


def best(model: SpeechModel, takes: Sequence[Take], phonemes: Tensor) -> Take:
    """The one that tells ``phonemes [U]`` best, among those that ended by themselves if any did."""
    ended = [take for take in takes if take.finish is not None and take.finish.reason == "stop"]
    return min(ended or takes, key=lambda take: badness(model, take, phonemes))


@torch.inference_mode()
def badness(model: SpeechModel, take: Take, phonemes: Tensor) -> float:
    """Minus the log probability of ``phonemes [U]`` in what ``take`` said, in nats for each of them."""
    if not take.said:
        return inf
    frames = model.lm.layout.frames(torch.cat([groups for groups, _ in take.said], 1))
    length = torch.tensor([frames.shape[2]])
    log_probs = model.codec.phoneme_log_probs(Codes(frames, length)).float()
    return float(
        F.ctc_loss(log_probs.transpose(0, 1).cpu(), phonemes[None].cpu(), length, torch.tensor([len(phonemes)]))
    )
