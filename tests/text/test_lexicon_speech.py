"""A lexicon of the user's own in front of the shipped G2P, and on its way through the whole of reading."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from speech_mtp.cli import main
from speech_mtp.hub import models
from speech_mtp.lm.units import UnitMaker, UnitStream
from speech_mtp.streaming.feed import pieces_of, sentences
from speech_mtp.text import inline
from speech_mtp.text.g2p.base import read_text
from speech_mtp.text.g2p.hibari import Hibari
from speech_mtp.text.lexicon import Lexicon, read_lexicon
from speech_mtp.text.phonemes import render
from tests.lm.tiny import tiny_backbone

WORDS = "Nguyen\tnuh win\nSQL\tˌɛskjuˈɛl\nkubectl\tkˈubkˌʌtəl\n"


@pytest.fixture
def g2p(tmp_path: Path) -> Lexicon:
    (tmp_path / "words.tsv").write_text(WORDS, encoding="utf-8")
    return Lexicon(Hibari(), read_lexicon(tmp_path / "words.tsv"))


@pytest.mark.parametrize(
    ("text", "heard"),
    [
        ("Ask Nguyen's wife.", "wˈɪnz"),
        ("Ask the Nguyens too.", "wˈɪnz"),
        ("We write SQL today.", "ˌɛskjuˈɛl"),
        ("Say [Kokoro](/kˈOkəɹO/) twice.", "kˈOkəɹO"),
    ],
)
def test_words_are_read_as_the_lexicon_says_however_they_arrive(g2p: Lexicon, text: str, heard: str) -> None:
    [sentence] = sentences(text)
    assert heard in render(read_text(g2p, sentence))
    assert heard not in render(read_text(Hibari(), sentence.replace("[Kokoro](/kˈOkəɹO/)", "Kokoro")))
    maker = UnitMaker(tiny_backbone(), g2p)
    stream = UnitStream(maker)
    for pieces in pieces_of(list(text)):
        for piece in pieces:
            stream.push(piece.text)
    stream.finish()
    while stream.advance():
        continue
    whole = maker.make([sentence])
    assert stream.units.phoneme.tolist() == whole.phoneme.tolist()
    assert stream.units.token.tolist() == whole.token.tolist()
    assert [word for word, _, _ in stream.words] == [w.strip(".") for w in inline.written(sentence).split()]


def test_a_lexicon_is_checked_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "words.tsv").write_text("Nguyen nuh win\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "_talker_parts", lambda *_: pytest.fail("a model was loaded"))
    monkeypatch.setattr(sys, "argv", ["speech-mtp", "say", "Hello.", "--lexicon", "words.tsv"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "Line 1 of the lexicon words.tsv" in capsys.readouterr().err
