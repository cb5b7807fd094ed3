"""Heads with a cache of their own: what every one must do is in ``tests/contracts``; here is what sets them apart."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, modeling_layers
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm, LlamaRotaryEmbedding

from speech_mtp import plugins
from speech_mtp.decoding.chain import Chain
from speech_mtp.decoding.text import start
from speech_mtp.heads import _sequential
from speech_mtp.heads._sequential import SequentialHead, SequentialState
from speech_mtp.heads.base import Binding, TrunkShape
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.types import LMOutput, Sampling
from tests.llama import random_llama

SHAPE = TrunkShape(dim=16, vocab_size=23, num_layers=6, num_heads=4, num_kv_heads=2, head_dim=4, intermediate_size=24)
HEADS = ["deepseek", "fastmtp", "eagle", "eagle3"]
TOKENS = torch.randint(0, 23, (3, 12), generator=torch.Generator().manual_seed(0))


def head_of(name: str, **settings: Any) -> Any:
    """A head of random parameters, bound to a random trunk."""
    torch.manual_seed(1)
    embedding, norm = nn.Embedding(23, 16).requires_grad_(False), nn.RMSNorm(16)
    head = plugins.build("heads", {"name": name, **settings}, shape=SHAPE)
    head.bind(Binding(embedding, lambda h: h @ embedding.weight.T, embedding.weight, norm))
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(torch.randn(p.shape) * 0.2 + (p.ndim == 1))
    return head


def states_of(head: SequentialHead, tokens: Tensor = TOKENS) -> LMOutput:
    rng = torch.Generator().manual_seed(2)
    return LMOutput(torch.randn(*tokens.shape, len(head.taps), 16, generator=rng))


def read(head: SequentialHead, state: SequentialState, out: LMOutput, begin: list[int], end: list[int]) -> None:
    """Pairs ``begin[b] .. end[b] - 1`` of every row, right-padded with what is not to be used."""
    lengths = torch.tensor(end) - torch.tensor(begin)
    at = torch.tensor(begin)[:, None] + torch.arange(int(lengths.max()))
    rows, at = torch.arange(len(begin))[:, None], at.clamp(max=TOKENS.shape[1] - 2)
    head.read(state, out.hidden[rows, at], head.embed(TOKENS[rows, at + 1]), lengths)


def opened(head: SequentialHead, out: LMOutput, end: list[int]) -> SequentialState:
    state = head.open(len(end), torch.device("cpu"), torch.float32)
    read(head, state, out, [0] * len(end), end)
    return state


@torch.no_grad()
def chain(head: SequentialHead, state: SequentialState, tokens: Tensor) -> Tensor:
    """Scores ``[B, N + 1, V]`` before, between and after the drafted ``tokens [B, N]``."""
    states = [head.root(state)]
    for j in range(tokens.shape[1]):
        parents = torch.full((len(tokens), 1), j - 1)
        states.append(head.expand(state, head.embed(tokens[:, j : j + 1]), parents)[:, 0])
    return torch.stack([head.scores(y, j, TOKENS[:, 0]) for j, y in enumerate(states)], 1)


@pytest.mark.parametrize("name", HEADS)
def test_unrolling_is_drafting_with_the_true_tokens_from_the_first_position_on(name: str) -> None:
    head = head_of(name, depth=4)
    out = states_of(head)
    unrolled = torch.stack([logits for _, logits in head.unroll(out, TOKENS)], 2)
    for t in range(TOKENS.shape[1] - 5):
        drafted = chain(head, opened(head, out, [t + 1] * 3), TOKENS[:, t + 2 : t + 5])
        torch.testing.assert_close(drafted, unrolled[:, t], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", HEADS)
def test_drafting_again_and_again_leaves_no_trace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sequential, "ROOM", 2)  # so that the cache grows, in reading and in drafting
    head = head_of(name)
    out = states_of(head)
    state = head.open(3, torch.device("cpu"), torch.float32)
    ends = [[0, 0, 0], [1, 3, 2], [1, 4, 5], [4, 8, 5], [9, 9, 9]]
    guesses = torch.randint(0, 23, (3, head.num_depths - 1), generator=torch.Generator().manual_seed(3))
    for begin, end in pairwise(ends):
        read(head, state, out, begin, end)
        twin = state.clone()
        drafted = chain(head, state, guesses)
        torch.testing.assert_close(drafted, chain(head, opened(head, out, end), guesses), atol=1e-5, rtol=1e-5)
        assert torch.equal(drafted, chain(head, twin, guesses)), "a clone has buffers of its own"


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("end", [[1, 2, 1], [6, 9, 4]])
@torch.no_grad()
def test_a_tree_is_its_chains(name: str, end: list[int]) -> None:
    """Two children of node 0, one child of each in swapped order, then two grandchildren of the second."""
    head = head_of(name, depth=4)
    out = states_of(head)
    state = opened(head, out, end)
    levels = [([4, 7], [-1, -1]), ([9, 9], [1, 0]), ([5, 6], [2, 2])]
    found = []
    for depth, (nodes, parents) in enumerate(levels, 1):
        tokens = torch.tensor([nodes] * 3)
        states = head.expand(state, head.embed(tokens), torch.tensor([parents] * 3))
        found.append(head.scores(states, depth, tokens))
    paths = {(0, 0): [4], (0, 1): [7], (1, 0): [7, 9], (1, 1): [4, 9], (2, 0): [7, 9, 5], (2, 1): [7, 9, 6]}
    for (level, node), path in paths.items():
        alone = chain(head, opened(head, out, end), torch.tensor([path] * 3))[:, -1]
        torch.testing.assert_close(found[level][:, node], alone, atol=1e-5, rtol=1e-5)
    assert (found[1][:, 0] - found[1][:, 1]).abs().amax() > 1e-3, "the same token, but not the same path"


@pytest.mark.parametrize("name", ["deepseek", "fastmtp"])
def test_the_order_is_a_matter_of_columns(name: str) -> None:
    first, second = head_of(name, order="embedding_first"), head_of(name, order="hidden_first")
    second.load_state_dict(first.state_dict())
    out = states_of(first)
    (_, expected), (_, other) = next(first.unroll(out, TOKENS)), next(second.unroll(out, TOKENS))
    assert (expected - other).abs().max() > 1e-2
    swapped = {k: v.roll(16, 1) if k.endswith("eh_proj.weight") else v for k, v in first.state_dict().items()}
    second.load_state_dict(swapped)
    torch.testing.assert_close(next(second.unroll(out, TOKENS))[1], expected, atol=1e-5, rtol=1e-5)


def test_deepseek_has_a_module_per_depth_and_fastmtp_one_for_all() -> None:
    def count(name: str, depth: int) -> int:
        return sum(p.numel() for p in head_of(name, depth=depth).parameters())

    assert count("deepseek", 3) == 3 * count("deepseek", 1)
    assert count("fastmtp", 3) == count("fastmtp", 1) == count("deepseek", 1)


def test_deepseek_ends_where_its_modules_end_and_the_others_go_on() -> None:
    deepseek, fastmtp = head_of("deepseek", depth=2), head_of("fastmtp", depth=2)
    with pytest.raises(ValueError, match="drafts 2 tokens"):
        chain(deepseek, opened(deepseek, states_of(deepseek), [3, 3, 3]), TOKENS[:, :2])
    assert chain(fastmtp, opened(fastmtp, states_of(fastmtp), [3, 3, 3]), TOKENS[:, :7]).isfinite().all()


@pytest.mark.parametrize("first", ["embedding_first", "hidden_first"])
@pytest.mark.skipif(not hasattr(modeling_layers, "MtpLayer"), reason="this transformers has no MTP layers")
def test_deepseek_is_the_chain_of_layers_of_transformers(first: str) -> None:
    head = head_of("deepseek", depth=2, order=first)
    config = LlamaConfig(
        vocab_size=23,
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=4,
        num_key_value_heads=2,
        rms_norm_eps=SHAPE.rms_norm_eps,
        mtp_hidden_states_first=first == "hidden_first",
        attn_implementation="eager",
    )
    out = states_of(head)
    hidden, index = out.top, torch.arange(12)[None]
    mask = torch.full((12, 12), float("-inf")).triu(1)[None, None]
    rotary = LlamaRotaryEmbedding(config)(hidden, index)
    for k, (_, logits) in enumerate(head.unroll(out, TOKENS)):
        layer = modeling_layers.MtpLayer(config, LlamaDecoderLayer, LlamaRMSNorm, k)
        names = {"block.": "mtp_block.", "norm.": "post_norm."}
        own = head.layers[k].state_dict()
        layer.load_state_dict(
            {next((b + n[len(a) :] for a, b in names.items() if n.startswith(a)), n): own[n] for n in own}
        )
        x = head.embed(TOKENS.roll(-k - 1, 1))
        hidden = layer(x, hidden, rotary, mask, index, None)
        torch.testing.assert_close(logits[:, :-2], head.unembed(hidden)[:, :-2], atol=1e-4, rtol=1e-4)


def test_fastmtp_as_published_trains_on_something_else_than_it_drafts_from_the_second_step_on() -> None:
    exact, published = head_of("fastmtp"), head_of("fastmtp", attention="published")
    out = states_of(exact)
    (first, *rest), (same, *others) = list(exact.unroll(out, TOKENS)), list(published.unroll(out, TOKENS))
    assert torch.equal(first[1], same[1])
    assert exact.drafts_as_trained
    assert not published.drafts_as_trained
    for (_, a), (_, b) in zip(rest, others, strict=True):
        assert (a[:, 1:6] - b[:, 1:6]).abs().amax((0, 2)).min() > 1e-3


def test_fastmtp_without_recursion_trains_one_step_and_drafts_all() -> None:
    plain, full = head_of("fastmtp", recursion=False), head_of("fastmtp")
    out = states_of(plain)
    ((offset, logits),) = plain.unroll(out, TOKENS)
    assert offset == 2
    assert torch.equal(logits, next(full.unroll(out, TOKENS))[1])
    assert plain.num_depths == full.num_depths == 3
    ends = [4, 5, 6]
    drafts = [chain(head, opened(head, out, ends), TOKENS[:, :2]) for head in (plain, full)]
    assert torch.equal(*drafts)


def test_eagle_predicts_the_next_features_and_scores_them() -> None:
    head = head_of("eagle", taps=(2, -1), feed="mixture")
    out = states_of(head)
    x = head.embed(TOKENS)
    predicted, target = head.regress(out, x)
    assert torch.equal(target[:, :-1], out.top[:, 1:])
    assert torch.equal(predicted, next(head.unroll_states(out, x))[1])
    assert predicted.requires_grad
    live = LMOutput(out.hidden.clone().requires_grad_())
    assert not head.regress(live, x)[1].requires_grad  # a trunk that learns is not drawn to the prediction
    low = head_of("eagle", taps=(2,))
    with pytest.raises(ValueError, match="last tap is 2"):
        low.regress(states_of(low), x)
    final = LMOutput(states_of(low).hidden, final=out.top)
    assert torch.equal(low.regress(final, x)[1], target)


def test_eagle3_reads_low_middle_and_high_layers() -> None:
    assert head_of("eagle3").taps == (2, 3)  # six layers: two of the three coincide
    shapes = [TrunkShape(16, 23, n, 4, 2, 4, 24) for n in (3, 12, 30)]
    taps = [plugins.build("heads", "eagle3", shape=shape).taps for shape in shapes]
    assert taps == [(0, 1, 2), (2, 6, 9), (2, 15, 27)]
    with pytest.raises(ValueError, match="2 layers"):
        plugins.build("heads", "eagle3", shape=TrunkShape(16, 23, 2, 4, 2, 4, 24))


def test_eagle3_hands_on_its_output_without_the_norm() -> None:
    """With a block that adds nothing, every step scores the norm of what ``fc`` made."""
    head = head_of("eagle3")
    with torch.no_grad():
        head.layer.self_attn.o_proj.weight.zero_()
        head.layer.mlp.down_proj.weight.zero_()
    out = states_of(head)
    expected = head.private[0](head.norm(head.mix.map(out.hidden.flatten(2))))
    for _, logits in head.unroll(out, TOKENS):
        torch.testing.assert_close(logits, expected)


def test_eagle3_starts_its_own_output_layer_from_the_trunk_once() -> None:
    head = plugins.build("heads", {"name": "eagle3", "draft_vocab": 5}, shape=SHAPE)
    head.set_vocabulary(torch.tensor([3, 1, 4, 15, 9]))
    trunk = head_of("eagle").trunk
    head.bind(trunk)
    assert torch.equal(head.private[0].weight, trunk.weight[[3, 1, 4, 15, 9]])
    trained = plugins.build("heads", {"name": "eagle3", "draft_vocab": 5}, shape=SHAPE)
    trained.load_state_dict({k: v + 1 if k == "private.0.weight" else v for k, v in head.state_dict().items()})
    trained.bind(trunk)
    assert torch.equal(trained.private[0].weight, head.private[0].weight + 1)


@pytest.mark.parametrize("settings", [{"order": "both"}, {"attention": "some"}, {"depth": 0}])
def test_impossible_settings_are_told(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"it must be|increasing positions"):
        head_of("fastmtp", **settings)


@pytest.mark.parametrize("name", HEADS)
def test_a_chat_of_two_turns_is_that_of_plain_decoding(name: str) -> None:
    """The second prompt is read outside of the step that wrote the head's buffers last."""
    lm = TextLM(random_llama(23, 16, num_hidden_layers=6, initializer_range=0.4))
    head = plugins.build("heads", name, shape=TrunkShape(**lm.shape()))
    head.bind(Binding(**lm.binding()))
    said = []
    for rule in (None, Chain(head)):
        run = start(lm, [[1, 2, 3], [4]], Sampling(temperature=0), rule, max_new_tokens=8)
        for turn in ([[5], [6, 7, 8]], None):
            while run.advance() is not None:
                pass
            said.append(run.tokens)
            if turn:
                run.say(turn)
    assert said[:2] == said[2:]
