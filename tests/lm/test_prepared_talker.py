"""A talker that is prepared to decode: all its layers in one call of the kernels, weights in 8 bits."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from speech_mtp.lm.embeddings import UnitEncoder
from speech_mtp.lm.speech_lm import SpeechLM
from speech_mtp.lm.talker import Talker
from speech_mtp.nn.kv_cache import KVCache, ancestors_of
from speech_mtp.nn.transformer import causal_mask
from speech_mtp.types import Kind, Positions
from tests.lm.test_encoded_units import random_units
from tests.nn.test_blocks import needs_kernels
from tests.tiny import tiny_lm

SIZES = {"dim": 64, "num_layers": 3, "heads": 2, "hidden": 96}


def talkers() -> tuple[SpeechLM, SpeechLM]:
    """The same weights, prepared and not."""
    return tiny_lm(**SIZES).prepare(), tiny_lm(**SIZES)


def inputs(rows: int, nodes: int) -> torch.Tensor:
    return torch.randn(rows, nodes, SIZES["dim"], generator=torch.Generator().manual_seed(4))


def states(lm: SpeechLM, cache: KVCache, x: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
    ancestors = ancestors_of(parents)
    index = cache.lengths[:, None] + ancestors.sum(-1) - 1
    with torch.inference_mode():
        return lm.node_states(x, index, ancestors, cache, (0, 2, -1)).hidden


@needs_kernels
def test_states_are_near_those_of_the_layers() -> None:
    prepared, plain = talkers()
    x, parents = inputs(2, 6), (torch.arange(6) - 1).expand(2, -1)
    found, true = (states(lm, lm.talker.open(2, 16, x.device), x, parents) for lm in (prepared, plain))
    assert torch.equal(found[:, :, 0], true[:, :, 0])
    assert 0 < float((found - true).norm() / true.norm()) < 0.03


@needs_kernels
def test_a_position_is_the_same_alone_in_a_tree_and_in_a_batch() -> None:
    lm, _ = talkers()
    x, parents = inputs(2, 5), torch.tensor([[-1, 0, 0, 1, 2], [-1, 0, 1, 2, 3]])
    cache = lm.talker.open(2, 16, x.device)
    before = inputs(2, 3) * 2
    states(lm, cache, before, (torch.arange(3) - 1).expand(2, -1))
    cache.advance(torch.tensor([3, 1]), 3)
    together = states(lm, cache, x, parents)
    for row, length in enumerate((3, 1)):
        alone = lm.talker.open(1, 16, x.device)
        for at in range(length):
            states(lm, alone, before[row : row + 1, at : at + 1], torch.tensor([[-1]]))
            alone.advance(torch.ones(1, dtype=torch.long), 1)
        for path in ([0, 1, 3], [0, 2, 4]) if row == 0 else ([0, 1, 2, 3, 4],):
            kept = alone.clone()
            for node in path:
                one = states(lm, kept, x[row : row + 1, node : node + 1], torch.tensor([[-1]]))
                assert torch.equal(one[0, 0], together[row, node])
                kept.advance(torch.ones(1, dtype=torch.long), 1)


def test_sizes_that_have_no_blocks_are_left_as_they_are() -> None:
    lm = tiny_lm(num_layers=3)
    assert lm.prepare() is lm
    x = torch.zeros(1, 1, 32)
    assert states(lm, lm.talker.open(1, 4, x.device), x, torch.tensor([[-1]])).shape == (1, 1, 3, 32)


@needs_kernels
def test_the_output_layer_is_prepared_too_and_the_weights_stay() -> None:
    prepared, plain = talkers()
    hidden, tokens = inputs(1, 4), torch.ones(1, 4, len(plain.layout.channel_sizes), dtype=torch.long)
    for found, true in zip(prepared.output.score(hidden, tokens), plain.output.score(hidden, tokens), strict=True):
        assert 0 < float(((found - true).norm() / true.norm()).detach()) < 0.03
    assert prepared.fingerprint == plain.fingerprint


@needs_kernels
@pytest.mark.parametrize("layout", ["aligned", "prefix"])
def test_teacher_forced_states_are_those_of_decoding(layout: str) -> None:
    """A head is judged by the model that it drafts for."""
    lm = tiny_lm(**SIZES, layout={"name": layout}).prepare()
    plain = tiny_lm(**SIZES, layout={"name": layout})
    x, index = inputs(2, 6), torch.arange(6).expand(2, -1)
    valid = torch.tensor([[True] * 6, [True, True, False, True, True, True]])
    found, true = (model._teacher_forced(x, index, causal_mask(valid), (-1,)).top for model in (lm, plain))
    assert 0 < float(((found - true).norm() / true.norm()).detach()) < 0.03
    alone = states(lm, lm.talker.open(1, 6, x.device), x[:1], torch.arange(6)[None] - 1)
    assert torch.equal(found[0], alone[0, :, -1])


@needs_kernels
def test_teacher_forced_text_is_read_as_in_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Block by block: text that is read whole may differ in its last bit, and that in what is rounded to 8 bits."""
    lm, plain = talkers()
    units = replace(random_units(40, 9), hidden=torch.randn(1, 9, 16), phoneme=torch.arange(40)[None] % 30)
    kinds, at = torch.full((1, 7), int(Kind.SPEECH)), torch.arange(7)[None]
    positions = Positions(lm.layout.nothing(7)[None], kinds, at, torch.zeros_like(at), at)
    timbre = torch.zeros(1, lm.config.voice_dim)
    in_blocks = lm(positions, units, timbre).top
    whole, read = [], UnitEncoder.forward
    monkeypatch.setattr(UnitEncoder, "forward", lambda encoder, text: whole.append(1) or read(encoder, text))
    assert torch.equal(lm(positions, units, timbre).top, in_blocks)
    assert not whole
    plain(positions, units, timbre)  # whose gradients need it, and which is faster so
    assert whole


def test_the_sum_of_layers_is_in_float32_where_products_are_not() -> None:
    talker = Talker(16, 2, 2, 32)
    x, index = torch.randn(1, 3, 16, dtype=torch.bfloat16), torch.arange(3)[None]
    with torch.autocast("cpu", torch.bfloat16):
        out = talker(x, index, torch.ones(1, 1, 3, 3, dtype=torch.bool), taps=(0, 1, -1))
    assert out.hidden.dtype == torch.float32
    assert talker.bfloat16()(x, index, torch.ones(1, 1, 3, 3, dtype=torch.bool)).hidden.dtype == torch.bfloat16
