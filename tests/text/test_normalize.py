"""The normaliser: what is written out, what is refused, and what always holds."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from speech_mtp.text import numbers
from speech_mtp.text.normalize import check_text, normalize
from tests.growth import assert_linear

CASES = [
    # numbers
    ("I have 3 cats.", "I have three cats."),
    ("1,234,567 people", "one million two hundred thirty-four thousand five hundred sixty-seven people"),
    ("pi is 3.14, not .5", "pi is three point one four, not point five"),
    ("agent 007", "agent zero zero seven"),
    ("the 1st, 22nd and 103rd", "the first, twenty-second and one hundred third"),
    ("in 1905, 1100, 2000", "in nineteen oh five, eleven hundred, two thousand"),
    ("2005 and 2026", "two thousand five and twenty twenty-six"),
    ("in the 1990s and '80s", "in the nineteen nineties and eighties"),
    ("1,905 men", "one thousand nine hundred five men"),
    ("pages 10-20, 1914–1918", "pages ten to twenty, nineteen fourteen to nineteen eighteen"),
    ("1/2, 3/4, 2/3", "one half, three quarters, two thirds"),
    ("2 1/2 cups, 3½ cups", "two and a half cups, three and a half cups"),
    ("version 2.0.1", "version two point zero point one"),
    ("2+2=4, 5 - 3 = 2, -5", "two plus two equals four, five minus three equals two, minus five"),
    ("x^2", "x squared"),
    ("12345678901234567", "one two three four five six seven eight nine zero one two three four five six seven"),
    # money, percentages, units
    ("$5.99, £1, €20.50", "five dollars and ninety-nine cents, one pound, twenty euros and fifty cents"),
    ("$0.01", "one cent"),
    ("$1.5 million and £3bn", "one point five million dollars and three billion pounds"),
    ("50¢ or 20 € or 1$", "fifty cents or twenty euros or one dollar"),
    ("-$1,000.00", "minus one thousand dollars"),
    ("5%, 12.5 %", "five percent, twelve point five percent"),
    ("5 km, 1 km, 3kg, 10 mph", "five kilometers, one kilometer, three kilograms, ten miles per hour"),
    ("20°C, -3.5 °F, 90°", "twenty degrees Celsius, minus three point five degrees Fahrenheit, ninety degrees"),
    ("3 \u03bcm, 1 µs", "three micrometers, one microsecond"),
    ("5 m², 60 km/h", "five square meters, sixty kilometers per hour"),
    # dates and times
    ("2026-11-21", "November twenty-first, twenty twenty-six"),
    ("by 11/21/2026", "by November twenty-first, twenty twenty-six"),
    ("by 21/11/26", "by November twenty-first, twenty twenty-six"),
    ("March 3rd 2024", "March third twenty twenty-four"),
    ("on 3 March, Nov. 5", "on the third of March, November fifth"),
    ("the 4th of July 1776", "the fourth of July seventeen seventy-six"),
    ("7:30 pm, 19:45, 7:00, 9:05 a.m.", "seven thirty PM, nineteen forty-five, seven o'clock, nine oh five AM."),
    ("at 10:00 a.m ET", "at ten AM ET"),
    ("At 7 p.m. we left.", "At seven PM we left."),
    # abbreviations, names, acronyms
    ("Dr. Smith of Elm St. met Mr. and Mrs. St. John.", "Doctor Smith of Elm Street met Mister and Missus Saint John."),
    ("Fruit, e.g. apples, i.e. food, etc.", "Fruit, for example, apples, that is, food, et cetera."),
    ("A vs. B, approx. No. 5", "A versus B, approximately number five"),
    ("The FBI and NASA met.", "The FBI and NASA met."),
    ("in the U.S. and the U.K.", "in the US and the UK."),
    ("J. R. R. Tolkien", "J R R Tolkien"),
    ("Henry VIII, Chapter IV, World War II", "Henry the eighth, Chapter four, World War two"),
    ("THIS IS A SHOUTED SENTENCE, I SAY!", "this is a shouted sentence, I say!"),
    ("he/she and/or they", "he or she and or they"),
    # addresses, telephone numbers, symbols
    ("Mail john@example.com.", "Mail john at example dot com."),
    ("j_d-42@ex.co.uk", "j underscore d dash four two at ex dot co dot uk"),
    ("see https://www.example.com/a-b.", "see w w w dot example dot com slash a dash b."),
    ("Go to example.org, now", "Go to example dot org, now"),
    ("Call (555) 123-4567", "Call five five five, one two three, four five six seven"),
    ("+44 20 7946 0958", "plus four four, two zero, seven nine four six, zero nine five eight"),
    ("R&D @ home #1 #fun", "R and D at home number one hashtag fun"),
    ("C++ is 50% * _em_ **bold**", "C plus plus is fifty percent em bold"),
    # typography
    ("café naïve Łódź Æsop", "cafe naive Lodz Aesop"),
    ("“It’s” — she said – fine… ok", "It's, she said, fine, ok"),
    ("I like it (a lot) [really].", "I like it, a lot, really."),
    ("I ❤️ you 😀!", "I you!"),
    ("Wait... what?! No!!!", "Wait, what? No!"),
    ("well-known -- and 'quoted' dogs' bones", "well-known, and 'quoted' dogs' bones"),
    ("line one\n\tline  two", "line one line two"),
]


@pytest.mark.parametrize(("written", "spoken"), CASES)
def test_written_english_becomes_words(written: str, spoken: str) -> None:
    assert normalize(written) == spoken


@pytest.mark.parametrize(
    ("text", "script", "shown"),
    [
        ("Say привет now", "Cyrillic", "привет"),
        ("hello 日本語", "Chinese", "日本語"),
        ("こんにちは", "Japanese", "こんにちは"),
        ("안녕", "Korean", "안녕"),
        ("مرحبا", "Arabic", "مرحبا"),
        ("Ωμέγα", "Greek", "Ωμέγα"),
        ("room १२", "Devanagari", "१२"),
    ],
)
def test_other_scripts_are_refused_by_name(text: str, script: str, shown: str) -> None:
    with pytest.raises(ValueError, match=rf"{script}.*{shown}"):
        normalize(text)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        ("...!?", "punctuation"),
        ("😀 🎉", "GRINNING FACE"),
        ("$", "DOLLAR SIGN"),
        ("%", "punctuation"),
    ],
)
def test_text_without_words_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        check_text(text)
    with pytest.raises(ValueError, match=reason):
        normalize(text)


@pytest.mark.parametrize("text", ["![](cat.png)", "<b></b>", "[](http://a.org)"])
def test_markup_without_words_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="only markup"):
        check_text(text)


def test_length_is_checked_with_the_count() -> None:
    check_text("a" * 10_000)
    with pytest.raises(ValueError, match="10001"):
        check_text("a" * 10_001)
    with pytest.raises(ValueError, match="6 characters"):
        check_text("123456", max_chars=5)


pieces = st.sampled_from(
    [
        "Dr.",
        "St.",
        "No.",
        "5",
        "3.5",
        "$",
        "-",
        "e.g.",
        "U.S.",
        "@",
        "a",
        "I",
        ".",
        ",",
        "'",
        "1/2",
        "7:30",
        "pm",
        "km",
        "%",
        "(",
        ")",
        "#",
        "May",
        "Chapter",
        "IV",
        "...",
        "—",
        "😀",
        "é",
        "www.",
        ".com",
        "x",
        "*",
        "2024",
        "th",
        ":",
        "/",
        "+1",
        "ABC",
        "co",
        " ",
    ]
)
texts = st.one_of(
    st.text(st.characters(codec="latin-1"), max_size=40),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40),
    st.lists(pieces, max_size=15).map("".join),
    st.lists(pieces, max_size=15).map(" ".join),
)


@settings(max_examples=300)
@given(texts)
@example("Jan (.)")
@example("a.-b")
@example("e*.g.")
def test_normalize_is_idempotent_and_keeps_to_its_alphabet(text: str) -> None:
    try:
        once = normalize(text)
    except ValueError:
        return
    assert re.fullmatch(r"[A-Za-z'](?:[A-Za-z' .,!?;:-]*[A-Za-z'.,!?;:])?", once)
    assert "  " not in once
    assert normalize(once) == once


@given(
    st.lists(st.sampled_from(["the", "quick", "fox", "isn't", "well-known", "over", "there"]), min_size=1, max_size=12)
)
def test_plain_sentences_stay_as_they_are(words: list[str]) -> None:
    assert normalize(" ".join(words) + ".") == " ".join(words) + "."


@given(st.integers(-(10**14), 10**14))
def test_every_number_is_spoken_in_words(value: int) -> None:
    spoken = normalize(f"it is {value} now")
    assert re.fullmatch(r"it is [a-z -]+ now", spoken)
    assert len(spoken) > len("it is  now")
    assert spoken.startswith("it is minus") == (value < 0)


@pytest.mark.parametrize(
    "text",
    [
        "a" * 10_000,
        "1" * 10_000,
        "1," * 5_000,
        "." * 10_000 + "a",
        ". " * 5_000 + "a",
        "a." * 5_000,
        "a@" * 5_000,
        "@" * 10_000 + "a",
        "1 " * 5_000,
        "(" * 10_000 + "a",
        "-" * 10_000 + "a",
        "a-" * 5_000,
        "a'" * 5_000,
        "$" * 10_000 + "1",
        "A " * 5_000,
        "a_" * 5_000,
        "5^" * 5_000,
        "1e5" * 3_000,
        "/a" * 5_000,
        "#a" * 5_000,
        "Mon, " * 2_000,
        "5 m/s " * 1_600,
        "1/" * 5_000,
        "1:" * 5_000,
        "www." * 2_500,
        "A. " * 3_333,
        "+1 " * 3_333,
        "I" * 10_000,
        "é" * 10_000,
        "a/" * 5_000,
        "😀" * 9_999 + "a",
        "http://" * 1_400,
    ],
    ids=lambda text: text[:4] + text[-2:],
)
def test_adversarial_text_is_linear(text: str) -> None:
    assert_linear(normalize, text)


def test_numbers_words() -> None:
    assert numbers.cardinal(1_000_105) == "one million one hundred five"
    assert numbers.ordinal(112) == "one hundred twelfth"
    assert numbers.fraction(3, 2) == "three over two"
    assert numbers.fraction(1, 2) == "one half"
