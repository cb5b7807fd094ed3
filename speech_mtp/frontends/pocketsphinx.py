"""CMU PocketSphinx: hidden Markov models and a trigram, with the English model of its package, on the CPU.

It makes many more errors than Whisper, and shares nothing with it: neither data nor features nor kind of model. That
makes it a second judge of speech, whatever codecs and talkers have learnt from the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from speech_mtp import plugins
from speech_mtp.frontends.base import NO_HINT, SAMPLE_RATE, Hint, Recogniser, Segment, Wave, Word

FRAMES_PER_S = 100
QUIET = 1e-3
"""A wave whose largest sample is below this says nothing."""


class PocketSphinx(Recogniser):
    """Hears English; what it hears is one segment. Raises :class:`speech_mtp.plugins.MissingExtra` where the extra is
    not installed."""

    name = "pocketsphinx-en-us"

    def __init__(self) -> None:
        plugins.locate("pocketsphinx", "asr")

    @cached_property
    def _decoder(self) -> Any:
        package = plugins.require("pocketsphinx", "asr")
        return package.Decoder(samprate=SAMPLE_RATE, loglevel="FATAL")

    def warm_up(self) -> None:
        list(self.segments(np.full(SAMPLE_RATE // 2, 0.1, np.float32)))

    def segments(self, wave: Wave, hint: Hint = NO_HINT) -> Iterator[Segment]:
        if hint.language not in (None, "en"):
            raise ValueError("The recogniser does not know this language; it knows en.")
        if not len(wave) or float(np.abs(wave).max()) < QUIET:
            return
        decoder = self._decoder
        decoder.start_utt()
        # Whole: it is then levelled by its own means, and not by those of what was heard before.
        decoder.process_raw((np.clip(wave, -1, 1) * 32767).astype("<i2").tobytes(), no_search=False, full_utt=True)
        decoder.end_utt()
        words = tuple(self._words(decoder, len(wave) / SAMPLE_RATE))
        if words:
            text = "".join(f" {word.text}" for word in words)
            yield Segment(text, words[0].start_s, words[-1].end_s, "en", words if hint.words else ())

    @staticmethod
    def _words(decoder: Any, end_s: float) -> Iterator[Word]:
        """Without the marks of silence and noise, ``<s>`` or ``[NOISE]``, and of pronunciations, ``the(2)``."""
        for one in decoder.seg() or ():
            if one.word[0] not in "<[+":
                first, last = one.start_frame / FRAMES_PER_S, (one.end_frame + 1) / FRAMES_PER_S
                yield Word(one.word.split("(")[0], min(first, end_s), min(last, end_s))
