"""What is particular to the hibari front end."""

from __future__ import annotations

import sys

import pytest

from speech_mtp.plugins import MissingExtra
from speech_mtp.text.g2p import hibari
from speech_mtp.text.phonemes import render


@pytest.fixture(scope="module")
def g2p() -> hibari.Hibari:
    pytest.importorskip("hibari")
    return hibari.Hibari()


def test_known_readings(g2p: hibari.Hibari) -> None:
    assert render(g2p.phonemize("Hello there.")) == "həlˈO ðˈɛɹ."
    assert render(g2p.phonemize("A butter knife, please!")) == "ɐ bˈʌTəɹ nˈIf, plˈiz!"


def test_a_long_unknown_word_is_read_to_its_end(g2p: hibari.Hibari) -> None:
    short = g2p.phonemize("zubroklaminator")
    long = g2p.phonemize("zubroklaminator" * 4)
    assert len(long) > 3 * len(short)


def test_what_the_net_gives_besides_phonemes_is_left_out() -> None:
    assert hibari._read_unknown(lambda word: "k7ˈæ#z\u2753", "zubroklam") == "kˈæz"


def test_a_word_written_twice_points_to_both_places(g2p: hibari.Hibari) -> None:
    starts = [u.char_start for u in g2p.phonemize("no no, no") if u.word_start]
    assert starts == [0, 3, 7]


def test_letters_without_any_reading_are_refused_by_name(g2p: hibari.Hibari) -> None:
    with pytest.raises(ValueError, match="日本"):
        g2p.phonemize("hello 日本")


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    hibari._front_end.cache_clear()
    hibari._front_end_module.cache_clear()
    monkeypatch.setitem(sys.modules, "hibari", None)
    with pytest.raises(MissingExtra, match="offline"):
        hibari.Hibari().phonemize("hello")
