"""Readings of the user's own: the file, the words it matches, and phonemes written in the text."""

from __future__ import annotations

from pathlib import Path

import pytest

from speech_mtp.text import inline
from speech_mtp.text.g2p.base import G2P
from speech_mtp.text.lexicon import Lexicon, read_lexicon
from speech_mtp.text.markup import plain
from speech_mtp.text.normalize import check_text, normalize
from speech_mtp.text.phonemes import Unit, merge_pauses, parse, render
from speech_mtp.text.split import split_sentences


class Letters(G2P):
    """Every word is "tə"."""

    name = "letters"

    def phonemize(self, text: str) -> list[Unit]:
        units, at = [], 0
        for word in text.split():
            at = text.index(word, at)
            core = word.rstrip(".,!?")
            units += parse("tə", at, at + len(core)) + parse(word[len(core) :], at + len(core), at + len(word))
            at += len(word)
        return merge_pauses(units)


def write(folder: Path, text: str) -> Path:
    path = folder / "words.tsv"
    path.write_text(text, encoding="utf-8")
    return path


def test_words_match_in_any_case_unless_capitals_are_inside(tmp_path: Path) -> None:
    g2p = Lexicon(Letters(), read_lexicon(write(tmp_path, "# mine\n\nkokoro\tkˈOkəɹO\nSQL\t/sˈikwəl/\nbim\tto to\n")))
    assert render(g2p.phonemize("Kokoro, sql SQL's bim.")) == "kˈOkəɹO, tə sˈikwəlz tə tə."


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("kokoro", "Line 1 .*a tab"),
        ("a b\tˈA", "one line to each word"),
        ("ok\tˈʘ", "Line 1 .*ʘ"),
        ("x\tx y\nx\tz", "Line 2 .*again"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(tmp_path: Path, line: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_lexicon(write(tmp_path, line))


def test_written_phonemes_come_through_to_the_word() -> None:
    (sentence,) = split_sentences(plain("Dr. [Kokoro](/kˈOkəɹO/) has 2 [New Yorks](/nˈu jˈɔɹks/)."))
    text = normalize(sentence)
    assert text == "Doctor [Kokoro](/kˈOkəɹO/) has two [New-Yorks](/nˈu_jˈɔɹks/)."
    assert normalize(text) == text
    assert inline.written(text) == "Doctor Kokoro has two New-Yorks."
    units = Lexicon(Letters()).phonemize(text)
    assert render(units) == "tə kˈOkəɹO tə tə nˈu jˈɔɹks."
    assert [text[u.char_start : u.char_end] for u in units if u.word_start][:2] == ["Doctor", "Kokoro"]


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("Nguyens", "nɪz"),
        ("Nguyen's", "nɪz"),
        ("Nguyens'", "nɪz"),
        ("Nguyen'll", "nɪəl"),
        ("two SQLs", "tə ˈɛlz"),
        ("Bosches", "bˈɑʃᵻz"),
        ("his", "tə"),
        ("[Bim](/bˈɪm/)s", "bˈɪmz"),
        ("[Bim](/bˈɪm/)'s", "bˈɪmz"),
        ("[Bim](/bˈɪm/)-based", "bˈɪm tə"),
        ("pre-[Bim](/bˈɪm/)", "tə bˈɪm"),
        ("a ([Bim](/bˈɪm/)),", "tə, bˈɪm"),
    ],
)
def test_endings_and_marks_beside_a_word_are_read(text: str, read: str) -> None:
    g2p = Lexicon(Letters(), {"nguyen": "/nɪ/", "SQL": "/ˈɛl/", "bosch": "/bˈɑʃ/", "hi": "/hˈI/"})
    assert render(g2p.phonemize(normalize(text))).strip(",") == read


def test_the_word_around_a_form_is_one_word() -> None:
    text = "a pre-[Bim](/bˈɪm/)-based [Bim](/bˈɪm/)'s"
    units = [u for u in Lexicon(Letters()).phonemize(text) if not u.is_pause]
    words = dict.fromkeys(inline.written(text[u.char_start : u.char_end]) for u in units)
    assert list(words) == ["a", "pre-Bim-based", "Bim's"]


@pytest.mark.parametrize("text", ["re[do](/dˈu/)ing", "[do](/dˈu/)ing", "re[do](/dˈu/)", "**re**[do](/dˈu/)"])
def test_phonemes_of_a_part_of_a_word_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="phonemes of 'do' stand inside a word"):
        normalize(plain(text))
    with pytest.raises(ValueError, match="phonemes of 'do' stand inside a word"):
        check_text(text)


def test_places_undo_written() -> None:
    text = "a [b](/bˈi/) c"
    assert [text[i] for i in inline.places(text)[:-1]] == list(inline.written(text))
