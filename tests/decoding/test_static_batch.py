"""Many prompts at once on fixed shapes: the tokens of plain decoding."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM

from speech_mtp.decoding import static_batch
from speech_mtp.decoding.sampling import choose, choose_among
from speech_mtp.decoding.static_batch import StaticBatch
from speech_mtp.decoding.text import start
from speech_mtp.lm.graphs import Graphs
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.nn import kv_cache
from speech_mtp.types import RowSampling, Sampling
from tests.lm.test_graphs import Tracer
from tests.lm.tiny import tiny_config, tiny_tokenizer

PROMPTS = [[5, 6, 7], [8], [9, 4, 3, 11, 12, 2], [7, 7]]
NEW = 70  # attention's columns are rounded up twice, and all rows are looked at twice


def tiny_lm(device: str = "cpu", dtype: torch.dtype = torch.float32) -> TextLM:
    """Random, prepared, and with many tokens that end an answer."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config()).to(dtype)
    model.generation_config.eos_token_id = list(range(20, model.config.vocab_size, 40))
    return TextLM(model.to(device), tiny_tokenizer()).prepare(graphs=device == "cuda")


def seeded(sampling: Sampling, device: str = "cpu") -> RowSampling:
    return RowSampling([replace(sampling, seed=seed) for seed in range(len(PROMPTS))], device)


def plain(lm: TextLM, sampling: Sampling) -> list[list[int]]:
    seeds = torch.arange(len(PROMPTS))
    return start(lm, PROMPTS, sampling, None, NEW, seeds=seeds).complete()


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0), Sampling(temperature=1.0, top_k=50), Sampling(temperature=0.8, top_p=0.9)]
)
def test_the_tokens_of_plain_decoding(sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(static_batch, "TOKENS_AT_A_TIME", 18)  # three rows of the longest prompt
    lm = tiny_lm()
    expected = plain(lm, sampling)
    batch = StaticBatch(lm, 6, 8, NEW)
    assert batch.answer(PROMPTS, seeded(sampling)) == expected
    assert batch.answer(PROMPTS[:2], seeded(sampling).select(torch.tensor([0, 1]))) == expected[:2]
    if sampling.temperature > 0:
        assert len({len(said) for said in expected}) > 1, "nothing ended by itself"


def test_a_step_depends_on_its_inputs_alone_and_is_recorded_once() -> None:
    lm, greedy, tracer = tiny_lm(), Sampling(temperature=0), Tracer()
    batch = StaticBatch(lm, 4, 8, NEW)
    batch.graphs = Graphs(tracer)
    others = [[3], [4, 5], [6, 9], [1]]
    for prompts in (PROMPTS, others, PROMPTS):
        expected = start(lm, prompts, greedy, None, NEW).complete()
        assert batch.answer(prompts, RowSampling([greedy] * 4)) == expected
    assert (tracer.recorded, len(batch.graphs)) == (2, 2), "one for 64 columns, one for 128"


def test_a_model_that_cannot_read_so_much_is_refused() -> None:
    lm = tiny_lm()
    with pytest.raises(ValueError, match="the model reads"):
        StaticBatch(lm, 2, lm.max_positions, 1)


def test_choosing_among_few_tokens_is_choosing_among_all_that_top_p_leaves() -> None:
    rows = RowSampling([Sampling(temperature=0.7, top_p=0.8, seed=seed) for seed in range(40)])
    logits = 6 * torch.randn(40, 1000, generator=torch.Generator().manual_seed(0))
    position = torch.arange(40)
    assert torch.equal(choose_among(logits, rows, position, 0), choose(logits, rows, position, 0))
    assert not torch.equal(choose_among(logits, rows, position, 0, count=1), choose(logits, rows, position, 0))


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_heads_side_by_side_see_what_each_sees(count: int, kind: torch.dtype) -> None:
    noise = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, heads, n, 8, generator=noise) for heads, n in ((6, count), (2, 11), (2, 11)))
    visible = torch.rand(3, 1, count, 11, generator=noise) > 0.4
    visible[..., 0] = True
    mask = visible if kind == torch.bool else torch.zeros(visible.shape).masked_fill(~visible, -1e9)
    expected = kv_cache.attention(q, k, v, mask)
    assert torch.allclose(kv_cache._side_by_side(q, k, v, mask), expected, atol=1e-6)
    assert torch.allclose(kv_cache._side_by_side(q, k, v, mask[:1]), kv_cache.attention(q, k, v, mask[:1]), atol=1e-6)


@pytest.mark.gpu
def test_on_a_gpu_by_cuda_graphs() -> None:
    lm = tiny_lm("cuda")
    batch = StaticBatch(lm, 4, 8, NEW)
    greedy = Sampling(temperature=0)
    assert batch.answer(PROMPTS, seeded(greedy, "cuda")) == plain(tiny_lm(), greedy)
    assert batch.graphs is not None
    assert len(batch.graphs) == 2, "steps were not recorded"
