"""Silences, and where recordings are cut at them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from pydantic import ValidationError

from speech_mtp.corpus.cutting import HeardWord, Piece, PieceRules, cut, silences

EDGES_S = (0.1, 0.2)


def sound(*seconds: float, noise: float = 0.0) -> np.ndarray:
    """Tone and silence in turns."""
    parts = [(0.3 * np.sin(np.arange(round(s * 24_000)) * 0.05)) * (i % 2 == 0) for i, s in enumerate(seconds)]
    wave = np.concatenate(parts)
    return (wave + noise * np.random.default_rng(0).normal(size=len(wave))).astype(np.float32)


def told(*spans: tuple[str, float, float]) -> list[HeardWord]:
    return [HeardWord(*span) for span in spans]


def pieces(words: list[HeardWord], wave: np.ndarray, rules: PieceRules, max_pause_s: float = 1.5) -> list[Piece]:
    return cut(words, silences(wave, rules.min_silence_s), len(wave) / 24_000, rules, max_pause_s, EDGES_S)


@pytest.mark.parametrize("noise", [0.0, 0.0003, 0.01])
def test_silences_are_found_in_any_noise(noise: float) -> None:
    found = silences(sound(1.0, 0.4, 2.0, 0.1, 1.0, 0.3, noise=noise), 0.15)
    assert found == pytest.approx(np.array([[1.0, 1.4], [4.5, 4.8]]), abs=0.011)


def test_the_noise_is_that_of_the_place() -> None:
    """A louder room after a quiet one, and a stretch of digital silence between them."""
    quiet, loud = sound(*[1.0, 0.4] * 20, noise=0.0002), sound(*[1.0, 0.4] * 20, noise=0.01)
    found = silences(np.concatenate([quiet, np.zeros(24_000, np.float32), loud]), 0.15)
    assert 36 <= len(found) <= 40, "some of those within seconds of the change may be missed"
    assert found[-10:, 1] - found[-10:, 0] == pytest.approx(0.4, abs=0.011)


def test_a_tone_without_end_has_no_silence() -> None:
    assert silences(sound(5.0), 0.15).shape == (0, 2)
    assert silences(np.zeros(24_000, np.float32), 0.15).tolist() == [[0.0, 1.0]]


def test_what_is_short_stays_whole_but_for_its_edges() -> None:
    words = told(("One.", 1.2, 1.8), ("Two.", 2.6, 3.4))
    assert pieces(words, sound(0, 1.0, 1.0, 0.5, 1.0, 1.0), PieceRules()) == [Piece(0, 2, 0.9, 3.7)]
    assert pieces(words, sound(3.5), PieceRules()) == [Piece(0, 2, 0.0, 3.5)], "nowhere is silence"


def test_long_recordings_are_cut_at_the_silences_between_words() -> None:
    wave = sound(4.0, 0.4, 4.0, 0.4, 4.0, 0.4, 4.0)
    words = told(("a", 0.2, 3.8), ("b", 4.6, 8.2), ("c.", 9.0, 12.6), ("d", 13.4, 17.0))
    found = pieces(words, wave, PieceRules(min_seconds=2, max_seconds=9))
    assert [piece.first for piece in found] == [0, *(piece.last for piece in found[:-1])]
    assert found[-1].last == 4
    assert len(found) == 3
    for left, right in pairwise(found):
        assert left.last == right.first
        assert left.stop_s <= right.start_s
    assert found[0].stop_s == pytest.approx(found[1].start_s - 0.1, abs=0.011), "0.2 and 0.1 of 0.4 seconds are kept"
    assert all(piece.seconds <= 9 for piece in found)


def test_a_cut_at_the_end_of_a_sentence_is_preferred() -> None:
    wave = sound(3.0, 0.3, 3.0, 0.3, 3.0, 0.3, 3.0)
    spans = [(0.1, 2.9), (3.4, 6.2), (6.7, 9.5), (10.0, 12.8)]
    for end in range(1, 4):
        words = [HeardWord(f"w{'.' if i + 1 == end else ''}", *span) for i, span in enumerate(spans)]
        found = pieces(words, wave, PieceRules(min_seconds=1, max_seconds=11))
        assert [(piece.first, piece.last) for piece in found] == [(0, end), (end, 4)]


def test_a_silence_inside_a_word_is_no_place_to_cut() -> None:
    wave = sound(3.0, 0.3, 3.0)
    found = pieces(told(("endless", 0.1, 6.2)), wave, PieceRules(max_seconds=4))
    assert [(piece.first, piece.last, round(piece.seconds, 2)) for piece in found] == [(0, 1, 6.3)]


def test_a_long_pause_is_cut_out_of_a_short_recording() -> None:
    words = told(("One.", 0.1, 1.9), ("Two.", 4.1, 5.9))
    found = pieces(words, sound(2.0, 2.0, 2.0), PieceRules())
    assert [(piece.first, piece.last) for piece in found] == [(0, 1), (1, 2)]
    assert (found[0].stop_s, found[1].start_s) == pytest.approx((2.2, 3.9), abs=0.011)


def test_sounds_without_words_are_left_out() -> None:
    """A jingle before the text, and something between two sentences that nobody wrote down."""
    wave = sound(1.5, 0.5, 3.0, 0.5, 2.0, 0.5, 3.0)
    words = told(("One.", 2.1, 4.9), ("Two.", 8.1, 10.9))
    found = pieces(words, wave, PieceRules(min_seconds=1, max_seconds=9))
    assert [(round(piece.start_s, 1), round(piece.stop_s, 1)) for piece in found] == [(1.9, 5.2), (7.9, 11.0)]


def test_words_that_were_found_in_silence_do_not_turn_time_around() -> None:
    wave = sound(2.0, 3.0, 2.0)
    found = pieces(told(("a.", 2.4, 2.5), ("b.", 3.2, 3.3), ("c.", 4.0, 4.1)), wave, PieceRules(max_seconds=4))
    assert all(piece.seconds > 0 for piece in found)
    assert [piece.first for piece in found] + [3] == [0, *(piece.last for piece in found)]


def test_lengths_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValidationError, match="set it above min_seconds"):
        PieceRules(min_seconds=5, max_seconds=4)
