"""Where the teacher says that its phonemes end: from its durations to the unit of every frame."""

from __future__ import annotations

import numpy as np
import pytest

from speech_mtp.corpus.teachers._onnx import ends_of
from speech_mtp.corpus.teachers.hibari import joined
from speech_mtp.corpus.told_durations import unit_at_frames, unit_ends_ms
from speech_mtp.text.phonemes import parse


def test_silence_belongs_to_the_first_and_the_last_character() -> None:
    durations = np.array([5, 1, 2, 3, 7], np.float32)  # silence, a, b, c, silence
    assert ends_of("axbc", "abc", durations).tolist() == [6, 6, 8, 18]
    assert ends_of("", "abc", durations[:2]).tolist() == []


def test_pieces_are_joined_by_a_space_that_takes_no_time() -> None:
    assert joined([np.array([1.0, 3.0]), np.array([2.0]), np.array([1.0, 1.5])]).tolist() == [1, 3, 3, 5, 5, 6, 6.5]


def test_marks_belong_to_the_phoneme_after_them_and_pauses_in_a_row_are_one() -> None:
    said = 'h\u02c8i,. "t\u02cct!'
    ends = np.arange(1, len(said) + 1) / 10
    units = parse("h\u02c8i. t\u02cct!")
    assert [unit.phoneme for unit in units] == ["h", "i", ".", "t", "t", "!"]
    assert unit_ends_ms(units, said, ends) == [100, 300, 500, 800, 1000, 1100]
    assert unit_ends_ms(units[1:], said, ends) is None
    assert unit_ends_ms(parse("hi"), ",hi", np.array([0.1, 0.2, 0.3])) == [200, 300]  # none before the first phoneme


@pytest.mark.parametrize(("rate", "units"), [(10.0, [0, 0, 1, 2, 2, 2]), (5.0, [0, 2, 2])])
def test_a_frame_speaks_the_unit_in_its_middle(rate: float, units: list[int]) -> None:
    """Where frames are longer than units, units are left out; what comes after the last end is still the last unit."""
    assert unit_at_frames([200, 300, 500], len(units), rate).tolist() == units


def test_the_first_frame_speaks_the_first_unit() -> None:
    assert unit_at_frames([10, 20, 400], 3, 10.0).tolist() == [0, 2, 2]
    assert unit_at_frames([400], 0, 10.0).tolist() == []
