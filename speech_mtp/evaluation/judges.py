"""The judges that reports listen with, in one value, so that a test or another language can bring its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from speech_mtp import plugins
from speech_mtp.evaluation.distill_mos import distill_mos
from speech_mtp.evaluation.dnsmos import dnsmos
from speech_mtp.evaluation.f0 import log_f0
from speech_mtp.evaluation.speaker_similarity import speaker_embedding
from speech_mtp.evaluation.wer import transcribe

PACKAGES = ("jiwer", "speechmos", "distillmos", "resemblyzer")
"""What they are made of, besides a recogniser."""


def check_installed() -> None:
    """Raise :class:`~speech_mtp.plugins.MissingExtra` for a package of the judges that is not there: it is needed after
    minutes of work."""
    for package in PACKAGES:
        plugins.locate(package, "eval")


@dataclass(frozen=True)
class Judges:
    """Each takes ``(wave [S], sample_rate)``.

    ``transcribe`` gives text, ``opinion`` the overall DNSMOS, ``second_opinion`` the score of DistillMOS, ``embed`` a
    speaker vector and ``pitch`` a log-F0 track. ``others`` transcribe too, by their names.
    """

    transcribe: Callable[[Tensor, int], str] = transcribe
    opinion: Callable[[Tensor, int], float] = lambda wave, rate: dnsmos(wave, rate).overall
    second_opinion: Callable[[Tensor, int], float] = distill_mos
    embed: Callable[[Tensor, int], Tensor] = speaker_embedding
    pitch: Callable[[Tensor, int], Tensor] = log_f0
    others: Mapping[str, Callable[[Tensor, int], str]] = field(default_factory=dict)

    def speaker(self, wave: Tensor, sample_rate: int) -> Tensor | None:
        """The speaker vector of generated audio; None if no speech is found in it: a result, not a fault."""
        try:
            return self.embed(wave, sample_rate)
        except ValueError:
            return None
