"""Many texts read in one pass: each as if it were alone, on rows that come back when a text ends."""

from __future__ import annotations

import gc
import random
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from speech_mtp.lm.backbone import Backbone
from speech_mtp.lm.cache import as_keyword
from speech_mtp.lm.packed_backbone import PackedBackbone
from speech_mtp.lm.reader import BLOCK, ReadingState, TextReader
from speech_mtp.lm.units import UnitMaker, UnitStream, advance_all
from tests.lm.test_backbone import family
from tests.lm.test_packed_backbone import saved
from tests.lm.tiny import Letters, tiny_backbone, tiny_tokenizer

TEXT = "the quick brown fox doesn't jump over the lazy dog, hello there! Good morning, fox."
WORDS = re.findall(r"\s*\S+", " " + TEXT)


@pytest.fixture(scope="module", params=["packed", "llama", "qwen2", "mistral", "gemma3"])
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TextReader:
    if request.param == "packed":
        folder = tmp_path_factory.mktemp("packed")
        saved(folder, Qwen3Config, {"head_dim": 8})
        return PackedBackbone(folder, "x", 3, [1, 2, 3])
    config: Any
    config, more = {
        "llama": (LlamaConfig, {}),
        "qwen2": (Qwen2Config, {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}),
        "mistral": (MistralConfig, {"sliding_window": 6}),
        "gemma3": (Gemma3TextConfig, {"head_dim": 8, "sliding_window": 6}),
    }[request.param]
    return Backbone(family(config, more), tiny_tokenizer(), "x", 3)


def text_of(rng: random.Random) -> list[str]:
    """Words of a text of up to 12."""
    return [rng.choice(WORDS) for _ in range(rng.randint(0, 12))]


def alone(reader: TextReader, words: list[str]) -> Tensor:
    state = reader.open()
    reader.extend(state, "".join(words))
    return reader.read_all(state)


@pytest.mark.parametrize("seed", range(4))
def test_texts_that_join_wait_and_leave_are_read_as_if_alone(reader: TextReader, seed: int) -> None:
    rng = random.Random(seed)
    texts = [text_of(rng) for _ in range(6)]
    joins = [rng.randint(0, 12) for _ in texts]
    states: list[ReadingState | None] = [None] * 6
    given, read, most = [0] * 6, [False] * 6, 0
    leaves = {rng.randrange(6): rng.randint(1, 6)}  # a listener goes in the middle of a text
    for tick in range(400):
        for i, words in enumerate(texts):
            if tick == joins[i]:
                states[i] = reader.open()
            state = states[i]
            if state is None or rng.random() < 0.4:
                continue
            if given[i] >= leaves.get(i, 99):
                given[i], read[i], states[i] = len(words), True, None
                continue
            step = rng.randint(1, 3)
            reader.extend(state, "".join(words[given[i] : given[i] + step]))
            given[i] = min(given[i] + step, len(words))
        there = [state for state in states if state is not None and rng.random() < 0.8]
        rng.shuffle(there)
        before = [(state.unread, state.states) for state in there]
        grown = reader.advance_many(there, 1 + tick % 2)
        assert grown == [unread for unread, _ in before]
        for state, (_, known) in zip(there, before, strict=True):
            assert torch.equal(state.states[:, : known.shape[1]], known), "what was read stays"
        for i, state in enumerate(states):
            if state is not None and given[i] == len(texts[i]) and not state.unread:
                torch.testing.assert_close(state.states, alone(reader, texts[i]), atol=1e-5, rtol=0)
                reader.close(state)
                states[i], read[i] = None, True
        most = max(most, sum(state is not None for state in states))
        if all(read):
            break
    assert all(read)
    assert most > 1
    del there, before, state, known
    gc.collect()
    assert reader.num_open == 0


def in_blocks(backbone: Backbone, text: str) -> Tensor:
    """``[L, D]`` by the library's own cache, a block at a time, as texts were read before they shared a cache."""
    lower = backbone._lower[0]
    cache = DynamicCache(config=lower.config)
    ids = backbone.prefix + backbone.tokenize(text)[0]
    found = []
    for start in range(0, len(ids), BLOCK):
        block = ids[start : start + BLOCK]
        padded = torch.tensor([block + [0] * (BLOCK - len(block))])
        with torch.inference_mode():
            out = lower(input_ids=padded, use_cache=True, **as_keyword(lower, cache))
        found.append(out.last_hidden_state[0, : len(block)])
    return torch.cat(found)[len(backbone.prefix) :]


def test_a_text_alone_is_read_as_before_to_the_last_bit() -> None:
    backbone = tiny_backbone()
    others = [backbone.open() for _ in range(2)]
    state, single = backbone.open(), backbone.open()
    for word in WORDS:
        for text in (state, single):
            backbone.extend(text, word)
        while backbone.advance_many([*others, state])[2]:  # nothing to read in the others
            continue
        while backbone.advance(single):
            continue
    assert torch.equal(state.states, single.states)
    assert torch.equal(state.states[0], in_blocks(backbone, " " + TEXT))


def test_rows_come_back_from_texts_that_are_closed_or_forgotten(reader: TextReader) -> None:
    states = [reader.open() for _ in range(3)]
    assert sorted(state.row for state in states) == [0, 1, 2]
    assert reader.num_open == 3
    reader.close(states[1])
    reader.close(states[1])
    assert reader.num_open == 2
    again = reader.open()
    assert again.row == 1
    reader.extend(states[1], WORDS[0])
    assert not states[1].unread, "its row is another text's"
    assert reader.advance_many([states[1], again]) == [False, False]
    del states[0]
    gc.collect()
    assert reader.num_open == 2
    assert reader.open().row == 0
    del again, states
    gc.collect()
    assert reader.num_open == 0


def test_a_row_remembers_nothing_of_the_text_before(reader: TextReader) -> None:
    fresh = alone(reader, WORDS[:7])
    kept = reader.open()  # so that the pool is not made anew
    reader.extend(kept, WORDS[0])
    first = reader.open()
    reader.extend(first, "".join(WORDS))
    reader.read_all(first)
    assert reader._pool is not None
    with torch.inference_mode():
        reader._pool.keys[:, first.row] = torch.nan
    reader.close(first)
    second = reader.open()
    assert second.row == first.row
    reader.extend(second, "".join(WORDS[:7]))
    while any(reader.advance_many([second, kept])):
        continue
    torch.testing.assert_close(second.states, fresh, atol=1e-5, rtol=0)
    reader.close(second)
    third = reader.open()
    reader.extend(third, "".join(WORDS[:7]))
    assert torch.equal(reader.read_all(third), fresh)


def test_a_prefix_of_several_blocks_is_read_along() -> None:
    backbone = tiny_backbone()
    backbone.prefix = list(range(3, 3 + 2 * BLOCK + 3))
    states = [backbone.open() for _ in range(2)]
    assert backbone.advance_many(states) == [False, False]
    for state, words in zip(states, (WORDS[:1], WORDS[:5]), strict=True):
        assert not state.unread
        backbone.extend(state, "".join(words))
        assert state.unread
    assert backbone.advance_many(states) == [True, True]
    while any(backbone.advance_many(states)):
        continue
    for state, words in zip(states, (WORDS[:1], WORDS[:5]), strict=True):
        torch.testing.assert_close(state.states, alone(backbone, words), atol=1e-5, rtol=0)


def test_streams_share_passes_and_give_their_rows_back(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = UnitMaker(tiny_backbone(), Letters())
    texts = ["".join(WORDS[:n]) for n in (4, 16, 9)]
    rows: list[int] = []
    read = type(maker.backbone)._read_chains
    monkeypatch.setattr(
        Backbone, "_read_chains", lambda self, chains, tokens: rows.append(len(tokens)) or read(self, chains, tokens)
    )
    streams = [UnitStream(maker) for _ in texts]
    assert advance_all([]) == []
    assert not any(stream.unread for stream in streams)
    for stream, text in zip(streams, texts, strict=True):
        stream.push(text)
        assert stream.unread
        stream.finish()
    while any(stream.unread for stream in streams):
        unread = [stream.unread for stream in streams]
        assert advance_all(streams) == unread
    assert rows[0] == 3
    assert len(rows) < sum(-(-(len(maker.backbone.prefix) + len(maker.backbone.spans(t))) // BLOCK) for t in texts)
    assert maker.backbone.num_open == 0, "a finished text that is read needs no row"
    for stream, text in zip(streams, texts, strict=True):
        whole = maker.make([text])
        assert stream.units.complete.all()
        assert torch.equal(stream.units.phoneme, whole.phoneme)
        torch.testing.assert_close(stream.units.hidden, whole.hidden, atol=1e-5, rtol=0)
    left = UnitStream(maker)
    left.push(texts[1])
    left.advance()
    assert maker.backbone.num_open == 1
    left.close()
    assert maker.backbone.num_open == 0
    assert left.units.hidden.shape[1] > 0


def test_a_pass_holds_as_many_blocks_as_it_is_told(reader: TextReader) -> None:
    states = [reader.open() for _ in range(2)]
    for state in states:
        reader.extend(state, TEXT)
    reader.advance_many(states[:1], 3)
    assert states[0].hidden.shape[1] == 3 * BLOCK
    reader.advance_many(states, 4)
    assert [state.hidden.shape[1] for state in states] == [5 * BLOCK, 2 * BLOCK]
    reader.advance_many(states, 1)
    assert [state.hidden.shape[1] for state in states] == [6 * BLOCK, 3 * BLOCK]
    torch.testing.assert_close(
        states[0].states, alone(reader, [TEXT])[:, : states[0].states.shape[1]], atol=1e-5, rtol=0
    )
    for state in states:
        reader.close(state)
