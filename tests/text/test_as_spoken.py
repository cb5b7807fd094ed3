"""Whole texts on their way to speech: where sentences end, and what markup leaves, as a listener would have it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speech_mtp.streaming.feed import joined, pieces_of, sentences
from speech_mtp.text.g2p.hibari import Hibari
from speech_mtp.text.lexicon import Lexicon
from speech_mtp.text.phonemes import render

FENCE = "Run this.\n```for name in names: print(name, name.upper(), name.lower(), name.title(), name.casefold(), "
FENCE += "name.swapcase())```\nThen go on."
TITLED = '```bash title="' + "a long title " * 10 + '" src="https://example.com/file.sh"\nls\n```\nDone.'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Roe v. Wade", ["Roe versus Wade"]),
        ("Brown v. Board of Education was right.", ["Brown versus Board of Education was right."]),
        ("1st Ave. & 2nd St.", ["first Avenue and second Street."]),
        ("Add 2 tsp. of salt and 3 oz. of milk.", ["Add two teaspoons of salt and three ounces of milk."]),
        ("It was built ca. 1850 by monks.", ["It was built circa eighteen fifty by monks."]),
        ("A Ph.D. student came.", ["A PhD student came."]),
        ("He is 6 ft. tall.", ["He is six feet tall."]),
        ("Meet Ed. He is nice.", ["Meet Ed.", "He is nice."]),
        ("I like Max.", ["I like Max."]),
        ("1. Wash\n2. Dry", ["one, Wash.", "two, Dry."]),
        ("1. Miss\n2. Ore", ["one, Miss.", "two, Ore."]),
        ("a. Wash it\nb. Dry it", ["A, Wash it.", "B, Dry it."]),
        ("Steps:\nI. Top\n  A. Sub\n  B. More\nII. Next", ["Steps:", "one, Top.", "A, Sub.", "B, More.", "two, Next."]),
        ("i. Mix\nii. Bake\niii. Cool", ["one, Mix.", "two, Bake.", "three, Cool."]),
        ("h) Mix\ni) Bake", ["H, Mix.", "I, Bake."]),
        ("p. 12 is\np. 13", ["page twelve is page thirteen"]),
        ("He left.\nI. Asimov wrote it.\nII was next.", ["He left.", "I.", "Asimov wrote it.", "II was next."]),
        ("He saw Louis\nXIV. Then he left.", ["He saw Louis the fourteenth.", "Then he left."]),
        ("A. Lincoln\nwas here.", ["A Lincoln was here."]),
        ("Bake it for 20 min. Then rest.", ["Bake it for twenty minutes.", "Then rest."]),
        ("It takes 5 min. to cook.", ["It takes five minutes to cook."]),
        ("There are 3×10⁵ of them.", ["There are three times ten to the fifth of them."]),
        ("Title\r\n===\r\nText here.\r\n", ["Title", "Text here."]),
        ("\ufeff# Title\nText here", ["Title.", "Text here"]),
        ("Start at 5:00:00 sharp.", ["Start at five o'clock sharp."]),
    ],
)
def test_a_text_is_the_sentences_that_a_listener_expects(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@given(st.sampled_from([FENCE, TITLED, "a________b is here", "say ********bold** now"]), st.data())
def test_markup_of_any_length_does_not_depend_on_the_cuts(text: str, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(1, len(text) - 1), max_size=20)))
    pieces = [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]
    for cut in (pieces, list(text)):
        assert list(joined(pieces_of(cut))) == sentences(text)


def test_phonemes_of_any_name_are_read() -> None:
    [sentence] = sentences("Meet [Žižek](/ʒˈiʒɛk/) now.")
    assert "ʒˈiʒɛk" in render(Lexicon(Hibari()).phonemize(sentence))


@pytest.mark.parametrize(("phonemes", "reason"), [("kˈOkqqəɹO", "'q' is none"), ("ˈ", "there is no sound")])
def test_phonemes_that_cannot_be_read_are_told(phonemes: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        sentences(f"Say [Kokoro](/{phonemes}/) twice.")
