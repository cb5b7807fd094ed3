"""Invariant decoding: in bfloat16 a node has the very same states alone, in a chain, in a tree and in a batch."""

import pytest
import torch
from torch import Tensor

from speech_mtp.decoding import catalogue
from speech_mtp.decoding.text import start
from speech_mtp.lm.text_lm import TextLM, TextState
from speech_mtp.nn.packed import PackedLinear, can_pack, is_invariant
from speech_mtp.types import Draft, Sampling, Verdict
from tests.decoding.test_text_lossless import make_head
from tests.llama import random_llama

pytestmark = pytest.mark.skipif(not can_pack(torch.bfloat16), reason="oneDNN takes no packed bfloat16 weights here")

PROMPTS = [[5, 9, 2, 8, 8, 1, 30], [7, 7, 30, 1, 12, 4, 22] * 4, [3, 18]]
ALONE = torch.tensor([[-1]])


@pytest.fixture(scope="module")
def lm() -> TextLM:
    """Wide enough inside for the product that oneDNN sums in another order for a single row."""
    model = random_llama(61, 128, 4, num_hidden_layers=4, intermediate_size=1536, max_position_embeddings=512)
    return TextLM(model.bfloat16()).prepare(invariant=True)


def read(lm: TextLM, prompts: list[list[int]]) -> TextState:
    state = lm.open(len(prompts))
    lm.read(state, prompts)
    return state


def states(lm: TextLM, state: TextState, tokens: Tensor, parents: Tensor) -> Tensor:
    return lm.verify(state, Draft(tokens[..., None], parents), (0, 2, -1)).hidden


def one_by_one(lm: TextLM, prompt: list[int], tokens: list[int]) -> Tensor:
    """The states of ``tokens`` after a prompt, each in a forward of its own: ``[T, taps, D]``."""
    state = read(lm, [prompt])
    found = []
    for token, after in zip(tokens, [*tokens[1:], 0], strict=True):
        draft = Draft(torch.tensor([[[token]]]), ALONE)
        found.append(lm.verify(state, draft, (0, 2, -1)).hidden[0, 0])
        verdict = Verdict(torch.zeros(1, 1, dtype=torch.long), torch.ones(1, dtype=torch.long), torch.tensor([[after]]))
        lm.commit(state, draft, verdict, torch.ones(1, dtype=torch.bool))
    return torch.stack(found)


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_a_chain_and_its_nodes_one_by_one(lm: TextLM, prompt: list[int]) -> None:
    tokens = [prompt[-1], *torch.randint(61, (40,), generator=torch.Generator().manual_seed(2)).tolist()]
    expected = one_by_one(lm, prompt, tokens)
    for width in (2, 5, len(tokens)):
        parents = torch.arange(width)[None] - 1
        found = states(lm, read(lm, [prompt]), torch.tensor([tokens[:width]]), parents)[0]
        assert torch.equal(found, expected[:width])


def test_a_tree_in_a_batch_and_its_branches_one_by_one(lm: TextLM) -> None:
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


def test_a_later_turn_and_a_fresh_start(lm: TextLM) -> None:
    first, second = PROMPTS[1], [4, 4, 19, 33, 2, 50]
    talk = read(lm, [first])
    lm.read(talk, [second])
    tokens, parents = torch.tensor([[second[-1], 6, 7]]), torch.tensor([[-1, 0, 0]])
    assert torch.equal(states(lm, talk, tokens, parents), states(lm, read(lm, [first + second]), tokens, parents))


@pytest.mark.parametrize(
    ("name", "rule"),
    [(None, "lookup"), ("medusa", "chain"), ("eagle", "tree"), ("hydra", "cascade"), ("leap", "leap")],
)
def test_the_text_is_the_same_whatever_drafts_it(lm: TextLM, name: str | None, rule: str) -> None:
    head = None if name is None else make_head(name, lm).bfloat16().prepare()
    greedy = Sampling(temperature=0)
    expected = [start(lm, [prompt], greedy, None, 40).complete()[0] for prompt in PROMPTS]
    assert start(lm, PROMPTS, greedy, catalogue.build(rule, head), 40).complete() == expected
    assert start(lm, PROMPTS[1:2], greedy, catalogue.build(rule, head), 40).complete() == expected[1:2]


def test_a_product_is_tried() -> None:
    weight = torch.randn(48, 1536, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert is_invariant(PackedLinear(weight, invariant=True))
    uneven = PackedLinear(weight, invariant=True)
    uneven.__class__ = type("Uneven", (PackedLinear,), {"__call__": lambda self, x: self._weight_of(x)})
    uneven._weight_of = lambda x: x[..., :48] + len(x) % 2  # type: ignore[attr-defined]
    assert not is_invariant(uneven)


def test_what_cannot_be_invariant_says_so() -> None:
    def small() -> TextLM:
        return TextLM(random_llama(61, 32, 4))

    with pytest.raises(ValueError, match=r"for bfloat16 on a CPU, not for torch\.float32 on cpu"):
        small().prepare(invariant=True)
    with pytest.raises(ValueError, match="cannot be invariant with a compiled one"):
        small().prepare(invariant=True, compile=True)
    ready = TextLM(random_llama(61, 32, 4).bfloat16()).prepare()
    with pytest.raises(ValueError, match="leave invariant out"):
        ready.prepare(invariant=True)
