"""Did an utterance come to its end: it stopped by itself, and its last word was heard."""

from __future__ import annotations

from speech_mtp.evaluation.wer import normalize
from speech_mtp.types import Finish

NEAR_END = 3
"""The last word must be among this many last words of the transcript: it may be followed by an echo or a breath."""


def last_word_heard(reference: str, transcript: str) -> bool:
    """Whether the last word of ``reference`` stands at the end of ``transcript``, both normalised.

    Spellings that the English normaliser makes equal count as equal, other homophones do not.
    Raises ``ValueError`` if the reference holds no word.
    """
    words = normalize(reference).split()
    if not words:
        raise ValueError(f"the reference {reference!r} holds no word, so it has no last word.")
    return words[-1] in normalize(transcript).split()[-NEAR_END:]


def ended_well(finish: Finish, reference: str, transcript: str) -> bool:
    """Success of one utterance: ``finish.reason`` is ``stop`` and the last word was heard."""
    return finish.reason == "stop" and last_word_heard(reference, transcript)
