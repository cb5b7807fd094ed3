"""Invariant decoding: in bfloat16 a node has the very same states alone, in a chain, in a tree and in a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GemmaConfig, GemmaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from speech_mtp.decoding import catalogue
from speech_mtp.decoding.base import DecodingRule
from speech_mtp.decoding.text import TextRun, start
from speech_mtp.heads.base import MTPHead
from speech_mtp.lm.text_lm import TextLM, TextRows
from speech_mtp.nn import packed
from speech_mtp.nn.packed import PackedLinear, is_invariant
from speech_mtp.types import Draft, Sampling, Verdict
from tests.decoding.test_text_lossless import make_head
from tests.llama import llama_config, needs_invariance, random_llama

PROMPTS = [[5, 9, 2, 8, 8, 1, 30], [7, 7, 30, 1, 12, 4, 22] * 4, [3]]
ALONE = torch.tensor([[-1]])
TAPS = (0, 2, -1)
SAMPLINGS = [
    Sampling(temperature=0),
    Sampling(temperature=0.8, top_p=0.9),
    Sampling(temperature=0.8, top_k=20, repetition_penalty=1.2),
]
WIDE = {"num_hidden_layers": 3, "intermediate_size": 1536, "max_position_embeddings": 512}


@pytest.fixture(scope="module")
def lm() -> TextLM:
    """Wide enough inside for the product that oneDNN sums in another order for a single row."""
    return TextLM(random_llama(61, 128, 4, **WIDE).bfloat16()).prepare(invariant=True)


def family(name: str) -> TextLM:
    """A random model with biases (qwen2) or norms of queries and keys (qwen3)."""
    sizes = llama_config(61, 64, head_dim=16, **{**WIDE, "intermediate_size": 96}).to_dict()
    kept = {key: value for key, value in sizes.items() if key not in ("model_type", "architectures", "pretraining_tp")}
    kinds = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}
    torch.manual_seed(5)
    config, model = kinds[name]
    return TextLM(model(config(**kept)).bfloat16()).prepare(invariant=True)


def read(lm: TextLM, prompts: list[list[int]]) -> TextRows:
    state = lm.open(len(prompts))
    lm.read(state, prompts)
    return state


def states(lm: TextLM, state: TextRows, tokens: Tensor, parents: Tensor) -> Tensor:
    return lm.verify(state, Draft(tokens[..., None], parents), TAPS).hidden


def one_by_one(lm: TextLM, prompt: list[int], tokens: list[int]) -> Tensor:
    """The states of ``tokens`` after a prompt, each in a forward of its own: ``[T, taps, D]``."""
    state = read(lm, [prompt])
    found = []
    zero, one = torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.long)
    for token, after in zip(tokens, [*tokens[1:], 0], strict=True):
        draft = Draft(torch.tensor([[[token]]]), ALONE)
        found.append(lm.verify(state, draft, TAPS).hidden[0, 0])
        verdict = Verdict(zero[None], one, torch.tensor([[after]]), zero, zero)
        lm.commit(state, draft, verdict, one > 0)
    return torch.stack(found)


def chain(lm: TextLM, prompt: list[int], width: int) -> tuple[Tensor, Tensor]:
    """The states of a random chain after a prompt, in one forward and one by one."""
    rng = torch.Generator().manual_seed(2)
    tokens = [prompt[-1], *torch.randint(61, (width - 1,), generator=rng).tolist()]
    together = states(lm, read(lm, [prompt]), torch.tensor([tokens]), torch.arange(width)[None] - 1)[0]
    return together, one_by_one(lm, prompt, tokens)


@needs_invariance
@pytest.mark.parametrize("width", [2, 5, 41])
@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_a_chain_and_its_nodes_one_by_one(lm: TextLM, prompt: list[int], width: int) -> None:
    together, alone = chain(lm, prompt, width)
    assert torch.equal(together, alone)


@needs_invariance
@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_other_families(name: str) -> None:
    together, alone = chain(family(name), PROMPTS[1], 12)
    assert torch.equal(together, alone)


@needs_invariance
def test_a_tree_in_a_batch_and_its_branches_one_by_one(lm: TextLM) -> None:
    check_tree(lm)


def check_tree(lm: TextLM) -> None:
    """A node of a tree in a batch has the states that it has alone."""
    parents = torch.tensor([[-1, 0, 0, 0, 1, 1, 2, 4, 5, 7]])
    rng = torch.Generator().manual_seed(3)
    tokens = torch.randint(61, (len(PROMPTS), parents.shape[1]), generator=rng)
    tokens[:, 0] = torch.tensor([prompt[-1] for prompt in PROMPTS])
    found = states(lm, read(lm, PROMPTS), tokens, parents.expand(len(PROMPTS), -1))
    for row, prompt in enumerate(PROMPTS):
        for leaf in (3, 6, 8, 9):
            path = [leaf]
            while path[0]:
                path.insert(0, int(parents[0, path[0]]))
            assert torch.equal(found[row, path], one_by_one(lm, prompt, tokens[row, path].tolist()))


@needs_invariance
def test_a_later_turn_and_a_fresh_start(lm: TextLM) -> None:
    first, second = PROMPTS[1], [4, 4, 19, 33, 2, 50]
    talk = read(lm, [first])
    lm.read(talk, [second])
    tokens, parents = torch.tensor([[second[-1], 6, 7]]), torch.tensor([[-1, 0, 0]])
    assert torch.equal(states(lm, talk, tokens, parents), states(lm, read(lm, [first + second]), tokens, parents))


@needs_invariance
def test_threads_that_share_a_long_prompt_do_not_show(lm: TextLM) -> None:
    """With five threads and this many rows, shares of an element-wise function end inside a vector."""
    check_pieces(lm, threads=5)


def check_pieces(lm: TextLM, threads: int) -> None:
    """A prompt that is read whole and one that is read in pieces are gone on with alike."""
    prompt = torch.randint(61, (151,), generator=torch.Generator().manual_seed(6)).tolist()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = read(lm, [prompt])
        pieces = read(lm, [prompt[:60]])
        lm.read(pieces, [prompt[60:]])
        tokens = torch.tensor([[prompt[-1], 6, 7]])
        found = [states(lm, state, tokens, torch.tensor([[-1, 0, 1]])) for state in (whole, pieces)]
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@needs_invariance
@pytest.mark.parametrize(
    ("name", "rule"),
    [(None, "lookup"), ("medusa", "chain"), ("eagle", "tree"), ("hydra", "cascade"), ("leap", "leap")],
)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "top_p", "penalised"])
def test_the_text_is_the_same_whatever_drafts_it(lm: TextLM, name: str | None, rule: str, sampling: Sampling) -> None:
    check_same_text(lm, None if name is None else make_head(name, lm).bfloat16().prepare(), rule, sampling)


def check_same_text(lm: TextLM, head: MTPHead | None, rule: str, sampling: Sampling) -> None:
    """Rows drafted together and alone say what plain decoding says."""
    seeds = torch.arange(len(PROMPTS))

    def said(rows: slice, drafting: DecodingRule | None) -> TextRun:
        run = start(lm, PROMPTS[rows], sampling, drafting, 40, seeds=seeds[rows])
        run.complete()
        return run

    expected = [said(slice(b, b + 1), None).tokens[0] for b in range(len(PROMPTS))]
    assert len({token for answer in expected for token in answer}) > 5
    together = said(slice(None), catalogue.build(rule, head))
    assert together.tokens == expected
    assert sum(together.statistics.tried) > 0
    assert said(slice(1, 2), catalogue.build(rule, head)).tokens == expected[1:2]


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The rows of every product from now on."""
    counted: list[int] = []

    def counting(rows: int, exact: Tensor) -> Tensor:
        counted.append(rows)
        return exact

    yield from another_product(monkeypatch, counting, counted)


def another_product(monkeypatch: pytest.MonkeyPatch, change: Callable[[int, Tensor], Tensor], given: Any) -> Any:
    """A processor whose products are ``change(rows, product)``, until the test is over."""
    product = PackedLinear._product

    def patched(linear: PackedLinear, x: Tensor) -> Tensor:
        return change(x.numel() // x.shape[-1], product(linear, x))

    monkeypatch.setattr(PackedLinear, "_product", patched)
    packed._sizes_agree.cache_clear()
    yield given
    packed._sizes_agree.cache_clear()


@needs_invariance
def test_no_product_sees_a_single_row(lm: TextLM, rows: list[int]) -> None:
    start(lm, [[3]], Sampling(temperature=0), None, 2).complete()
    assert rows
    assert set(rows) <= {2, 16}


@needs_invariance
@pytest.mark.parametrize("filled", [False, True])
def test_prompts_of_any_length_are_products_of_tried_sizes(rows: list[int], filled: bool) -> None:
    for wide in (384, 20_000):
        linear = PackedLinear(torch.ones(wide, 32, dtype=torch.bfloat16), invariant=True)
        linear.filled = filled
        packed._sizes_agree.cache_clear()
        rows.clear()
        is_invariant(linear)
        tried = set(rows)
        for length in (1, 2, 25, 57, 256, 257, 280, 511, 700):
            rows.clear()
            assert linear(torch.ones(1, length, 32)).shape == (1, length, wide)
            assert set(rows) <= tried, length
    assert linear(torch.ones(2, 0, 32)).shape == (2, 0, wide)


@needs_invariance
def test_a_long_prompt_whole_and_in_pieces(lm: TextLM) -> None:
    prompt = torch.randint(61, (430,), generator=torch.Generator().manual_seed(7)).tolist()
    whole, pieces = read(lm, [prompt]), read(lm, [prompt[:33]])
    lm.read(pieces, [prompt[33:140]])
    lm.read(pieces, [prompt[140:]])
    tokens = torch.tensor([[prompt[-1], 6, 7]])
    found = [states(lm, state, tokens, torch.tensor([[-1, 0, 1]])) for state in (whole, pieces)]
    assert torch.equal(*found)


@pytest.fixture
def few_and_many(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A processor that sums three rows or more otherwise than two."""
    yield from another_product(monkeypatch, lambda rows, exact: exact + (rows > 2), None)


@pytest.mark.usefixtures("few_and_many")
def test_blocks_are_filled_where_a_few_rows_are_not_summed_as_many_are() -> None:
    weight = torch.randn(48, 96, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert not PackedLinear(weight).filled
    linear = PackedLinear(weight, invariant=True)
    assert linear.filled
    assert is_invariant(linear)
    x = torch.randn(57, 96, generator=torch.Generator().manual_seed(2)).bfloat16()
    whole = linear(x)
    torch.testing.assert_close(whole, x @ weight.mT + 1)
    for size in (1, 2, 15, 16, 17, 40):
        assert torch.equal(torch.cat([linear(piece) for piece in x.split(size)]), whole), size


def test_every_number_of_threads_is_tried(rows: list[int]) -> None:
    weight = torch.ones(48, 97, dtype=torch.bfloat16)
    plain, before = PackedLinear(weight), torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for tried in (True, False):  # the second time it is known
                rows.clear()
                if threads < 3:
                    PackedLinear(weight, invariant=True)
                else:
                    is_invariant(plain)
                assert bool(rows) == tried
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The largest number of every product from now on."""
    seen: list[float] = []

    def seeing(_: int, exact: Tensor) -> Tensor:
        seen.append(float(exact.abs().max()))
        return exact

    yield from another_product(monkeypatch, seeing, seen)


def test_it_is_tried_on_what_rounding_leaves(products: list[float]) -> None:
    for inputs in (96, 97):
        is_invariant(PackedLinear(torch.ones(48, inputs, dtype=torch.bfloat16)))
    assert products
    assert max(products) < 1e-3


def test_a_wide_product_stands_for_wider_ones(rows: list[int]) -> None:
    is_invariant(PackedLinear(torch.ones(50_000, 32, dtype=torch.bfloat16)))
    assert rows
    rows.clear()
    is_invariant(PackedLinear(torch.ones(60_000, 32, dtype=torch.bfloat16)))
    assert not rows


@pytest.fixture
def uneven(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A processor that never computes the same twice."""
    calls = count()
    yield from another_product(monkeypatch, lambda _, exact: exact + next(calls), None)


@pytest.mark.usefixtures("uneven")
def test_a_product_is_tried() -> None:
    assert not is_invariant(PackedLinear(torch.ones(48, 96, dtype=torch.bfloat16), invariant=True))
    model = TextLM(random_llama(61, 32, 4).bfloat16())
    with pytest.raises(ValueError, match="On this processor a product depends on the number of rows"):
        model.prepare(invariant=True)
    assert model._decoder is None
    assert not isinstance(model.output._layer[0], PackedLinear)


def test_what_cannot_be_invariant_says_so() -> None:
    with pytest.raises(ValueError, match=r"for bfloat16 on a CPU, not for torch\.float32 on cpu"):
        TextLM(random_llama(61, 32, 4)).prepare(invariant=True)
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "head_dim": 16}
    gemma = GemmaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64)
    with pytest.raises(ValueError, match="'gemma' models cannot be decoded invariantly"):
        TextLM(GemmaForCausalLM(gemma).bfloat16()).prepare(invariant=True)
    ready = TextLM(random_llama(61, 32, 4).bfloat16())
    with pytest.raises(ValueError, match="Compiled decoding is not invariant"):
        ready.prepare(invariant=True, compile=True)
    with pytest.raises(ValueError, match="prepared for decoding that is not invariant"):
        ready.prepare().prepare(invariant=True)


@needs_invariance
def test_what_is_invariant_is_not_compiled(lm: TextLM) -> None:
    with pytest.raises(ValueError, match="Compiled decoding is not invariant"):
        lm.prepare(compile=True)
    assert lm.invariant
