"""Text units: the join of phonemes and tokens, and the promises of streamed units."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_mtp.lm.reader import BLOCK
from speech_mtp.lm.units import UnitMaker, UnitStream, join
from speech_mtp.text.phonemes import SYMBOLS, Unit
from speech_mtp.types import TextUnits
from tests.lm.tiny import Letters, tiny_backbone

MAKER = UnitMaker(tiny_backbone(), Letters())
WORDS = st.lists(st.sampled_from(["fox", "doesn't", "hello,", "lazy", "dog.", "brown", "jumps", "it"]), max_size=8)


def spoken(units: TextUnits, row: int = 0) -> str:
    return "".join(SYMBOLS[i] for i in units.phoneme[row, : units.lengths[row]].tolist())


def test_a_word_is_spread_over_its_tokens_by_characters() -> None:
    units = [Unit(p, 0, i == 0, 0, 9) for i, p in enumerate("bdfhjk")]
    units += [Unit(",", 0, False, 9, 10), Unit("b", 0, True, 11, 13)]
    assert join(units, [(0, 3), (3, 9), (9, 10), (10, 12), (12, 13)]) == [0, 0, 1, 1, 1, 1, 2, 4]
    assert join(units, [(0, 13)]) == [0] * 8
    assert join([], []) == []


@given(st.lists(WORDS, min_size=1, max_size=4))
@settings(max_examples=30)
def test_tokens_never_decrease_and_lie_inside_the_row_and_the_word(rows: list[list[str]]) -> None:
    texts = [" ".join(words) for words in rows]
    units = MAKER.make(texts)
    encoded = MAKER.backbone.encode(texts)
    assert units.phoneme.shape == units.stress.shape == units.word_start.shape == units.token.shape
    assert units.complete.all()
    for row, text in enumerate(texts):
        n = int(units.lengths[row])
        token = units.token[row, :n]
        assert (token.diff() >= 0).all()
        assert (token < encoded.lengths[row]).all()
        assert units.phoneme[row, n:].sum() == 0
        for unit, t in zip(MAKER.g2p.phonemize(text), token.tolist(), strict=True):
            start, end = encoded.spans[row][t]
            assert start < unit.char_end
            assert unit.char_start < end


def test_words_name_their_units() -> None:
    text = "hello, fox. it"
    units = MAKER.make([text])
    words = MAKER.words(text)
    assert [word for word, _, _ in words] == ["hello", "fox", "it"]
    assert [spoken(units)[a:b] for _, a, b in words] == ["hll", "f", "it"]
    assert spoken(units) == "hll,f.it"
    assert units.word_start[0].tolist() == [1, 0, 0, 0, 1, 0, 1, 0]


def pieces_of(text: str, sizes: list[int]) -> list[str]:
    """``text`` cut before white space, ``sizes`` words to a piece."""
    words = re.findall(r"\s*\S+", text)
    cuts = [0, *itertools.accumulate(sizes), len(words)]
    return ["".join(words[a:b]) for a, b in itertools.pairwise(cuts)]


def read(stream: UnitStream) -> None:
    while stream.advance():
        continue


@given(WORDS, st.lists(st.integers(0, 3), max_size=12))
def test_streamed_units_grow_and_end_as_the_whole_text(words: list[str], sizes: list[int]) -> None:
    text = " ".join(words)
    stream = UnitStream(MAKER)
    before = stream.units
    for piece in pieces_of(text, sizes):
        stream.push(piece)
        read(stream)
        now, n = stream.units, int(before.lengths[0])
        assert not now.complete.any()
        for name in ("phoneme", "stress", "word_start", "token"):
            assert torch.equal(getattr(now, name)[:, :n], getattr(before, name))
        assert torch.equal(now.hidden[:, : before.hidden.shape[1]], before.hidden)
        assert now.token.numel() == 0 or now.token.max() < now.hidden.shape[1]
        before = now
    stream.finish()
    read(stream)
    last, whole = stream.units, MAKER.make([text])
    assert last.complete.all()
    for name in ("phoneme", "stress", "word_start", "token"):
        assert torch.equal(getattr(last, name), getattr(whole, name))
    torch.testing.assert_close(last.hidden, whole.hidden, atol=1e-5, rtol=0)
    assert stream.words == MAKER.words(text)
    at_once = UnitStream(MAKER)
    at_once.push(text)
    at_once.finish()
    read(at_once)
    assert torch.equal(at_once.units.hidden, last.hidden), "to the last bit, however the text came"


def test_a_word_waits_for_the_second_after_it_and_is_read_in_its_context() -> None:
    stream = UnitStream(MAKER)
    for piece, spoken_by_now in (("it read", ""), (" yesterday", "it"), (" fox", "itɹɛd")):
        stream.push(piece)
        read(stream)
        assert spoken(stream.units) == spoken_by_now
    stream.finish()
    read(stream)
    assert spoken(stream.units) == spoken(MAKER.make(["it read yesterday fox"]))
    assert [word for word, _, _ in stream.words] == ["it", "read", "yesterday", "fox"]


def test_the_backbone_reads_no_further_than_it_is_asked() -> None:
    stream = UnitStream(MAKER)
    stream.push("the lazy brown fox jumps over the lazy dog and it jumps over the brown fox")
    stream.finish()
    assert not stream.units.complete.any()
    counts = []
    while stream.advance():
        counts.append(stream.units.hidden.shape[1])
    first = len(MAKER.backbone.prefix)
    assert counts[:2] == [n * BLOCK - first for n in ((first // BLOCK) + 1, (first // BLOCK) + 2)]
    assert stream.units.complete.all()


class NeedsTheEnd(Letters):
    """Reads every word anew when a full stop arrives: more context than a stream can wait for."""

    def phonemize(self, text: str) -> list[Unit]:
        return super().phonemize(text.replace("fox", "dog") if "." in text else text)


def test_the_context_of_a_word_ends_with_the_second_after_it_in_whole_texts_too() -> None:
    maker = UnitMaker(MAKER.backbone, NeedsTheEnd())
    text = "fox lazy fox it fox."
    stream = UnitStream(maker)
    for piece in pieces_of(text, [1] * 4):
        stream.push(piece)
    stream.finish()
    read(stream)
    assert spoken(stream.units) == spoken(maker.make([text])) == "flzdɡitdɡ."


def test_empty_text_and_a_finished_stream() -> None:
    stream = UnitStream(MAKER)
    stream.push("  ")
    stream.finish()
    stream.finish()
    assert not stream.advance()
    assert stream.units.lengths.tolist() == [0]
    assert stream.units.complete
    with pytest.raises(ValueError, match="finished"):
        stream.push("more")
