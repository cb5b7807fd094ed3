"""The phoneme inventory and the parser of phoneme strings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech_mtp.text.phonemes import CONSONANTS, ID, PAUSES, SYMBOLS, VOWELS, Unit, merge_pauses, parse, render


def test_index_zero_is_the_blank_and_ids_are_the_positions() -> None:
    assert SYMBOLS[0] == "_"
    assert len(set(SYMBOLS)) == len(SYMBOLS)
    assert all(SYMBOLS[ID[s]] == s for s in SYMBOLS)


def test_stress_goes_to_the_next_vowel_and_words_start_after_spaces() -> None:
    units = parse("həlˈO ˌtɛst,", 3, 8)
    assert "".join(u.phoneme for u in units) == "həlOtɛst,"
    assert [u.stress for u in units] == [0, 0, 0, 1, 0, 2, 0, 0, 0]
    assert [i for i, u in enumerate(units) if u.word_start] == [0, 4]
    assert {(u.char_start, u.char_end) for u in units} == {(3, 8)}


def test_stress_does_not_leak_into_the_next_word() -> None:
    assert [u.stress for u in parse("tˈ ə")] == [0, 0]


def test_related_characters_map_to_the_inventory() -> None:
    assert [u.phoneme for u in parse('gɾʔ—…;"(')] == ["ɡ", "T", "t", ",", ".", ","]


@pytest.mark.parametrize("bad", ["ʘ", "hə_", "日"])
def test_a_foreign_character_is_refused_by_name(bad: str) -> None:
    with pytest.raises(ValueError, match=bad[-1]):
        parse(bad)


def test_runs_of_pauses_keep_the_strongest_and_none_leads() -> None:
    merged = merge_pauses(parse(", hˈI ,.?, jˈu..."))
    assert [u.phoneme for u in merged] == ["h", "I", "?", "j", "u", "."]
    spans = merge_pauses([Unit("h", 0, True, 0, 2), Unit(",", 0, False, 2, 3), Unit("!", 0, False, 4, 5)])
    assert (spans[1].phoneme, spans[1].char_start, spans[1].char_end) == ("!", 2, 5)


words = st.text(st.sampled_from(VOWELS + CONSONANTS), min_size=1, max_size=6)


@given(st.lists(st.tuples(words, st.sampled_from(["", *PAUSES])), max_size=6))
def test_render_and_parse_are_inverse(sentence: list[tuple[str, str]]) -> None:
    text = " ".join(word + mark for word, mark in sentence)
    assert render(parse(text)) == text
