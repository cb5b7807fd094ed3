"""Every G2P plug-in: no word vanishes, spans are those of the words, only the shared inventory comes out."""

from __future__ import annotations

import re

import pytest

from speech_mtp import plugins
from speech_mtp.text.g2p.base import G2P
from speech_mtp.text.phonemes import ID

SENTENCES = (
    "Could you pick up some milk, eggs and bread on your way home?",
    "The well-known co-operation isn't over yet; it's twenty-one years old.",
    "Mr. Brown's three dogs' bones were hidden by the neighbour's cat!",
    "She said 'no' twice - and then, at seven p.m., she left...",
    "My email is john at example dot com, and I'd've told you sooner.",
    "The FBI and NASA met in the U.S. on March third, twenty twenty-four.",
    "Xyzzy, qwrtz, hmm, shhh and psst are hardly words, are they?",
    "Supercalifragilisticexpialidociousness scared Pneumonoultramicroscopicsilicovolcanoconiosis.",
    "Rock 'n' roll, and/or jazz: whichever you prefer.",
    "I cannot believe we're gonna wait: one hundred and five minutes",
)


@pytest.fixture(scope="module", params=plugins.names("text.g2p"))
def g2p(request: pytest.FixtureRequest) -> G2P:
    built: G2P = plugins.build("text.g2p", request.param)
    try:
        built.phonemize("warm up")
    except plugins.MissingExtra as missing:
        pytest.skip(str(missing))
    return built


def test_it_carries_a_name(g2p: G2P) -> None:
    assert g2p.name


@pytest.mark.parametrize("text", SENTENCES)
def test_every_word_is_spoken_inside_its_span(g2p: G2P, text: str) -> None:
    units = g2p.phonemize(text)
    spoken = [u for u in units if not u.is_pause]
    for word in re.finditer(r"\S*\w\S*", text):
        inside = [u for u in spoken if word.start() <= u.char_start and u.char_end <= word.end()]
        assert inside, f"{word.group()!r} vanished"
        assert inside[0].word_start, f"{word.group()!r} does not start a word"


@pytest.mark.parametrize("text", SENTENCES)
def test_units_are_of_the_inventory_and_in_order(g2p: G2P, text: str) -> None:
    units = g2p.phonemize(text)
    assert all(u.phoneme in ID and ID[u.phoneme] > 0 for u in units)
    starts = [u.char_start for u in units]
    assert starts == sorted(starts)
    assert all(0 <= u.char_start < u.char_end <= len(text) for u in units)
    assert any(u.stress == 1 for u in units)


def test_punctuation_becomes_pauses(g2p: G2P) -> None:
    pauses = [(u.phoneme, u.char_start) for u in g2p.phonemize("Well, who? Me: no! Yes.") if u.is_pause]
    assert pauses == [(",", 4), ("?", 9), (",", 13), ("!", 17), (".", 22)]


def test_extra_white_space_does_not_shift_spans(g2p: G2P) -> None:
    text = "  two   words \n here."
    found = [text[u.char_start : u.char_end] for u in g2p.phonemize(text) if u.word_start]
    assert found == ["two", "words", "here"]


@pytest.mark.parametrize("text", ["", "   ", "...", " , "])
def test_text_without_words_has_no_units(g2p: G2P, text: str) -> None:
    assert g2p.phonemize(text) == []


def test_readings_do_not_depend_on_earlier_calls(g2p: G2P) -> None:
    first = g2p.phonemize(SENTENCES[0])
    g2p.phonemize(SENTENCES[5])
    assert g2p.phonemize(SENTENCES[0]) == first
