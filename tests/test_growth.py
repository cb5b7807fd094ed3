"""The helper of the tests that ask for linear work: it tells linear from quadratic."""

from __future__ import annotations

import pytest

from tests.growth import assert_linear


def test_quadratic_work_is_found_out() -> None:
    assert_linear(lambda text: [character.upper() for character in text], "ab" * 20_000)
    with pytest.raises(AssertionError, match="a quarter of them"):
        assert_linear(lambda text: [text.count("c") for _ in text], "ab" * 10_000)
