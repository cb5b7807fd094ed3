from __future__ import annotations

import pytest

pytest.importorskip("whisper_normalizer", reason="needs the eval extra")

from speech_mtp.evaluation.last_word import ended_well, last_word_heard
from speech_mtp.types import Finish


@pytest.mark.parametrize(
    ("reference", "transcript", "heard"),
    [
        ("I like this colour.", "I like this color", True),
        ("Call the dog!", "Call the dog. Dog.", True),
        ("The dog saw a dog and another dog.", "The dog saw a dog and a lot of noise", False),
        ("The train leaves at noon.", "The train leaves at", False),
        ("Over there.", "", False),
    ],
)
def test_last_word(reference: str, transcript: str, heard: bool) -> None:
    assert last_word_heard(reference, transcript) is heard


def test_success_needs_a_stop_and_the_last_word() -> None:
    assert ended_well(Finish("stop"), "Good night.", "Good night.")
    assert not ended_well(Finish("length"), "Good night.", "Good night.")
    assert not ended_well(Finish("stop"), "Good night.", "Good")
    with pytest.raises(ValueError, match="no word"):
        last_word_heard("!!", "hello")
