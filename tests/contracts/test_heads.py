"""Every head: what is drafted is what is trained, nothing looks ahead, rows are independent, no weights are tied."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp import plugins
from speech_mtp.heads.base import Binding, HeadState, Mixture, MTPHead, TrunkShape
from speech_mtp.nn.row_values import put, select, widen
from speech_mtp.nn.transformer import Attention, BlockShape
from speech_mtp.types import LMOutput

SHAPE = TrunkShape(16, 23, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=4, intermediate_size=24)
# Settings beside the defaults. Heads that can mix layers are also tried with MIXED.
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "hydra": [{"num_layers": 3, "private": True}, {"num_layers": 2, "prefix_layer": True}],
    "leap": [{"stride": 1}, {"stride": 3, "num_heads": 2, "private": True}],
    "medusa": [{"num_layers": 2, "private": True}],
    "parallel": [{"taps": (-1,)}],
}
# Parameters that make no scores: of a confidence, which has a loss of its own.
UNSCORED = {"dspark": {"judge.weight", "judge.bias"}}
MIXED = ({"taps": (1, -1), "feed": "mixture"}, {"taps": (0, 2), "feed": "concat"})


@dataclass(frozen=True, eq=False)
class Case:
    name: str
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{k}={v}" for k, v in self.settings.items())])


def accepts(name: str, setting: str) -> bool:
    try:
        return setting in inspect.signature(plugins.find("heads", name)).parameters
    except Exception:  # fails in the tests of this head, not in those of all
        return False


def settings_of(name: str) -> list[dict[str, Any]]:
    return [{}, *VARIANTS.get(name, []), *(MIXED if accepts(name, "feed") else ())]


CASES = [Case(name, settings) for name in plugins.names("heads") for settings in settings_of(name)]
PLAIN = [case for case in CASES if case.settings not in MIXED]


def where(
    fits: Callable[[MTPHead], bool] = lambda head: True, among: Sequence[Case] = PLAIN, setting: str = "shape"
) -> pytest.MarkDecorator:
    """The cases that a test is about; a head that cannot be built is in all of them."""

    def wanted(case: Case) -> bool:
        try:
            return fits(sample(case)) and accepts(case.name, setting)
        except Exception:
            return True

    return pytest.mark.parametrize("case", [case for case in among if wanted(case)], ids=str)


@cache
def sample(case: Case) -> MTPHead:
    return make(case)


@cache
def trunk() -> Binding:
    rng = torch.Generator().manual_seed(5)
    table = torch.randn(SHAPE.vocab_size, SHAPE.dim, generator=rng)
    weight = torch.randn(SHAPE.vocab_size, SHAPE.dim, generator=rng) * 0.3
    norm = nn.RMSNorm(SHAPE.dim).requires_grad_(False)
    norm.weight.copy_(torch.rand(SHAPE.dim, generator=rng) + 0.5)
    return Binding(lambda t: F.embedding(t, table), lambda h: F.linear(h, weight), weight, norm)


def weights() -> Tensor:
    """The trunk's output layer ``[V, D]``."""
    weight = trunk().weight
    assert weight is not None
    return weight


def make(case: Case, trained: bool = True, **more: Any) -> MTPHead:
    """The head of a case, bound to the trunk; ``trained`` gives it random parameters."""
    torch.manual_seed(3)
    head: MTPHead = plugins.build("heads", {"name": case.name, **case.settings}, shape=SHAPE, **more)
    head.bind(trunk())
    if trained:
        with torch.no_grad():
            for weight in head.parameters():
                weight.normal_(0, 0.3)
    return head.eval()


def texts(head: MTPHead, rows: int = 2) -> tuple[Tensor, Tensor]:
    """Trunk states ``[B, T, taps, D]`` and tokens ``[B, T]``, a little longer than the head looks ahead."""
    rng = torch.Generator().manual_seed(7)
    t = head.offsets[-1] + 4
    hidden = torch.randn(rows, t, len(head.taps), SHAPE.dim, generator=rng)
    return hidden, torch.randint(SHAPE.vocab_size, (rows, t), generator=rng)


def unroll(head: MTPHead, hidden: Tensor, tokens: Tensor) -> dict[int, Tensor]:
    with torch.no_grad():
        return dict(head.unroll(LMOutput(hidden), tokens))


def new_state(head: MTPHead, rows: int) -> HeadState:
    return head.open(rows, torch.device("cpu"), torch.float32)


def feed(head: MTPHead, state: HeadState, hidden: Tensor, x: Tensor, begin: Sequence[int], n: Sequence[int]) -> None:
    """Let row b read ``n[b]`` positions from ``begin[b]`` on; what pads the shorter rows is noise. ``x [B, T, D]`` are
    the input vectors, or ``[B, T]`` the tokens of a text."""
    x = vectors(x)
    rows, widest = len(begin), max(n)
    states = torch.full((rows, widest, *hidden.shape[2:]), 9.0)
    after = torch.full((rows, widest, SHAPE.dim), 9.0)
    for b, (start, count) in enumerate(zip(begin, n, strict=True)):
        states[b, :count] = hidden[b, start : start + count]
        after[b, :count] = x[b, start + 1 : start + count + 1]
    head.read(state, states, after, torch.tensor(n))


def vectors(x: Tensor) -> Tensor:
    """The embeddings of tokens; vectors as they are."""
    embed = trunk().embed
    assert embed is not None
    return x if x.is_floating_point() else embed(x)


def draft_states(head: MTPHead, state: HeadState, true: Tensor) -> Iterator[Tensor]:
    """States ``[B, D]`` of every depth, fed with the ``true`` vectors ``[B, N, D]`` after ``last``, as far as they
    go."""
    yield head.root(state)
    for d in range(min(head.num_depths - 1, true.shape[1])):
        yield head.expand(state, true[:, d : d + 1], torch.full((len(true), 1), d - 1))[:, 0]


def draft(head: MTPHead, state: HeadState, true: Tensor) -> Iterator[Tensor]:
    """Scores of every depth, fed with the ``true [B, N]`` tokens of which the first is ``last``."""
    for d, states in enumerate(draft_states(head, state, vectors(true[:, 1:]))):
        yield head.scores(states, d, true[:, d])


def near(a: Tensor, b: Tensor, of_largest: float = 1e-4) -> None:
    assert a.shape == b.shape
    assert (a - b).abs().max() <= of_largest * b.abs().max().clamp(min=1)


@where(lambda head: True, CASES)
@torch.no_grad()
def test_predictions_that_are_wanted_are_the_same_as_all(case: Case) -> None:
    head = make(case)
    hidden, tokens = texts(head)
    wanted = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    some = dict(head.unroll(LMOutput(hidden, wanted=wanted), tokens))
    for offset, logits in unroll(head, hidden, tokens).items():
        near(some[offset][wanted], logits[wanted])


@where(lambda head: head.drafts_as_trained, CASES)
@torch.no_grad()
def test_drafts_are_what_was_trained(case: Case) -> None:
    head = make(case)
    hidden, tokens = texts(head)
    trained, state = unroll(head, hidden, tokens), new_state(head, 2)
    assert tuple(trained) == head.offsets
    for t in range(tokens.shape[1] - head.offsets[0] + 1):
        feed(head, state, hidden, tokens, [t, t], [1, 1])
        for offset, scores in zip(head.offsets, draft(head, state, tokens[:, t + 1 :]), strict=False):
            if t + offset <= tokens.shape[1]:
                near(scores, trained[offset][:, t])


@where()
def test_nothing_looks_ahead(case: Case) -> None:
    head, t = make(case), 2
    hidden, tokens = texts(head)
    before = unroll(head, hidden, tokens)
    later, other, here = hidden.clone(), tokens.clone(), hidden.clone()
    later[:, t + 1 :] += 1
    here[:, t] += torch.randn(here[:, t].shape)
    for offset in {head.offsets[0], head.offsets[head.num_depths // 2], head.offsets[-1]}:
        other[:, : t + offset], other[:, t + offset :] = tokens[:, : t + offset], (tokens[:, t + offset :] + 1) % 23
        near(unroll(head, later, other)[offset][:, : t + 1], before[offset][:, : t + 1])
        assert not torch.allclose(unroll(head, here, tokens)[offset][:, t], before[offset][:, t])


@where()
def test_documents_of_one_row_are_read_as_if_alone(case: Case) -> None:
    """Where the token to be guessed is in the document."""
    head = make(case)
    hidden, tokens = texts(head)
    size = tokens.shape[1]
    segment = torch.tensor([[1] * size + [2] * size])
    packed = LMOutput(hidden.flatten(0, 1)[None], segment=segment)
    with torch.no_grad():
        found = dict(head.unroll(packed, tokens.reshape(1, -1)))
    for offset, scores in unroll(head, hidden, tokens).items():
        near(found[offset].unflatten(1, (2, size))[0, :, : size - offset], scores[:, : size - offset])


@where(among=CASES)
def test_every_parameter_learns_also_one_offset_at_a_time(case: Case) -> None:
    head = make(case)
    hidden, tokens = texts(head)
    weight = torch.randn(tokens.shape[1], head.num_tokens)

    def terms() -> Iterator[Tensor]:
        for offset, logits in head.unroll(LMOutput(hidden), tokens):
            counts = tokens.shape[1] - offset + 1
            yield (logits * weight)[:, :counts].sum()

    for term in terms():
        term.backward(retain_graph=head.shared_pass)
    single = {name: p.grad for name, p in head.named_parameters()}
    assert {name for name, grad in single.items() if grad is None or not grad.any()} == UNSCORED.get(case.name, set())
    head.zero_grad()
    torch.stack(list(terms())).sum().backward()
    for name, p in head.named_parameters():
        if name not in UNSCORED.get(case.name, set()):
            near(p.grad, single[name], 1e-3)


@where()
def test_no_weights_are_tied_or_taken_from_the_trunk(case: Case) -> None:
    own = make(case).state_dict(keep_vars=True)
    tensors = {**own, "trunk": weights(), "norm": trunk().norm.get_parameter("weight")}
    homes: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        homes.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    assert [names for names in homes.values() if len(names) > 1] == []


@pytest.mark.parametrize("name", ["hydra", "leap", "medusa", "parallel"])
def test_blocks_of_one_offset_do_not_touch_another(name: str) -> None:
    head = make(Case(name))
    before = unroll(head, *texts(head))
    with torch.no_grad():
        for weight in head.get_submodule("blocks.0").parameters():
            weight.add_(0.5)
    after = unroll(head, *texts(head))
    same = [torch.equal(after[offset], before[offset]) for offset in head.offsets]
    assert same == [False] + [True] * (head.num_depths - 1)


@where(lambda head: head.identity_at_start and head.taps == (-1,))
@torch.no_grad()
def test_an_untrained_head_is_the_trunks_own(case: Case) -> None:
    head = make(case, trained=False)
    hidden, tokens = texts(head)
    state = new_state(head, 2)
    feed(head, state, hidden, tokens, [0, 0], [5, 3])
    expected = torch.stack([hidden[0, 4, -1], hidden[1, 2, -1]]) @ weights().T
    assert torch.equal(head.scores(head.root(state), 0, torch.tensor([0, 0])), expected)


@torch.no_grad()
def test_an_untrained_parallel_head_is_the_trunks_last_norm_and_output() -> None:
    head = make(Case("parallel", {"taps": (-1,)}), trained=False)
    hidden, tokens = texts(head)
    for logits in unroll(head, hidden, tokens).values():
        near(logits, trunk().norm(hidden[:, :, -1]) @ weights().T)


@torch.no_grad()
def test_several_taps_start_with_the_last() -> None:
    taps = torch.eye(3)[None]  # tap i is the unit vector i
    assert Mixture("concat", 3, 3)(taps).tolist() == [[0.0, 0.0, 1.0]]
    assert float(Mixture("mixture", 3, 3)(taps)[0, 2]) > 0.9


@torch.no_grad()
def test_the_blocks_of_a_head_have_the_trunks_sizes() -> None:
    shape = replace(SHAPE, rms_norm_eps=0.5, rope_theta=7.0)
    assert shape.block(9) == BlockShape(16, 4, 2, 4, 24, 0.5, 7.0, 9)
    near_by, far = Attention(shape.block()), Attention(SHAPE.block())
    far.load_state_dict(near_by.state_dict())
    x, mask = torch.randn(1, 5, 16), torch.ones(1, 1, 5, 5, dtype=torch.bool).tril()
    index = torch.arange(5)[None]
    assert not torch.allclose(near_by(x, index, mask), far(x, index, mask), atol=1e-4)


@torch.no_grad()
def test_a_prepared_head_may_choose_its_vocabulary_anew() -> None:
    head = make(Case("medusa"), draft_vocab=3).prepare()
    head.set_vocabulary(torch.tensor([9, 2, 17]))
    state = torch.randn(2, SHAPE.dim)
    near(head.unembed(state), (state @ weights().T)[:, [9, 2, 17]])


@where()
@torch.no_grad()
def test_rows_and_pieces_do_not_matter(case: Case) -> None:
    head = make(case)
    hidden, tokens = texts(head, 3)
    lengths, first = [5, 3, 4], [2, 0, 3]
    ahead = torch.stack([tokens[b, n:][:2] for b, n in enumerate(lengths)])
    batch, pieces = new_state(head, 3), new_state(head, 3)
    feed(head, batch, hidden, tokens, [0, 0, 0], lengths)
    feed(head, pieces, hidden, tokens, [0, 0, 0], first)
    list(draft(head, pieces, ahead))  # must leave no trace
    feed(head, pieces, hidden, tokens, first, [n - f for n, f in zip(lengths, first, strict=True)])
    together = torch.stack(list(draft(head, batch, ahead)))
    near(torch.stack(list(draft(head, pieces, ahead))), together)
    for b, n in enumerate(lengths):
        alone = new_state(head, 1)
        feed(head, alone, hidden[b : b + 1], tokens[b : b + 1], [0], [n])
        near(torch.stack(list(draft(head, alone, ahead[b : b + 1])))[:, 0], together[:, b])


@where(lambda head: True, CASES)
@torch.no_grad()
def test_a_prepared_head_drafts_the_same(case: Case) -> None:
    heads = make(case), make(case).prepare()
    hidden, tokens = texts(heads[0])
    lengths = [4, 2]
    ahead = torch.stack([tokens[b, n:][:2] for b, n in enumerate(lengths)])
    plain, fast = (new_state(head, 2) for head in heads)
    for head, state in zip(heads, (plain, fast), strict=True):
        feed(head, state, hidden, tokens, [0, 0], lengths)
    near(torch.stack(list(draft(heads[1], fast, ahead))), torch.stack(list(draft(heads[0], plain, ahead))))


@where()
@torch.no_grad()
def test_a_branch_of_a_tree_is_a_chain(case: Case) -> None:
    head = make(case)
    hidden, tokens = texts(head)
    state = new_state(head, 2)
    feed(head, state, hidden, tokens, [0, 0], [4, 2])
    start, levels = state.clone(), ([[3], [8]], [[3, 5], [8, 1], [8, 6]], [[8, 1, 4], [3, 5, 4]])
    head.root(state)
    places: dict[tuple[int, ...], int] = {(): -1}
    for paths in levels[: 3 if head.recursive else head.num_depths - 1]:
        new = torch.tensor([[path[-1] for path in paths]] * 2)
        parents = torch.tensor([[places[tuple(path[:-1])] for path in paths]] * 2)
        scores = head.scores(head.expand(state, vectors(new), parents), len(paths[0]), new)
        for i, path in enumerate(paths):
            places[tuple(path)] = len(places) - 1
            chain, alone = start.clone(), torch.tensor([path] * 2)
            head.root(chain)
            for d in range(len(path)):
                last = head.expand(chain, vectors(alone[:, d : d + 1]), torch.full((2, 1), d - 1))
            near(scores[:, i], head.scores(last, len(path), alone[:, -1:])[:, 0])


@where(setting="draft_vocab")
def test_a_reduced_vocabulary_is_a_choice_of_rows(case: Case) -> None:
    ids = torch.tensor([4, 19, 2, 22, 7, 11, 0])
    whole, reduced = make(case, draft_vocab=None), make(case, draft_vocab=len(ids))
    reduced.set_vocabulary(ids)
    cut = {name: rows_of(w, whole.state_dict().get(name), ids) for name, w in reduced.state_dict().items()}
    reduced.load_state_dict(cut)
    assert reduced.to_target(torch.arange(len(ids))).tolist() == ids.tolist()
    hidden, tokens = texts(whole)
    full, few = unroll(whole, hidden, tokens), unroll(reduced, hidden, tokens)
    for offset in whole.offsets:
        counts = tokens.shape[1] - offset + 1
        near(few[offset][:, :counts], full[offset][:, :counts, ids])


def rows_of(small: Tensor, big: Tensor | None, ids: Tensor) -> Tensor:
    """``big`` cut down to the shape of ``small`` along the axes that hold the vocabulary."""
    if big is None:
        return small  # the vocabulary itself
    for axis in range(big.ndim):
        if big.shape[axis] != small.shape[axis]:
            big = big.index_select(axis, ids)
    return big


@where()
@torch.no_grad()
def test_a_clone_goes_its_own_way(case: Case) -> None:
    head = make(case)
    hidden, tokens = texts(head)
    state = new_state(head, 2)
    feed(head, state, hidden, tokens, [0, 0], [3, 2])
    true = tokens[:, 3:5]
    before = torch.stack(list(draft(head, state.clone(), true)))
    other = state.clone()
    list(draft(head, other, true))
    feed(head, other, hidden, tokens, [3, 2], [2, 2])
    gone = torch.stack(list(draft(head, other, true)))
    assert torch.equal(torch.stack(list(draft(head, state.clone(), true))), before)
    feed(head, state, hidden, tokens, [3, 2], [2, 2])
    near(torch.stack(list(draft(head, state, true))), gone)


# -- trunks without text --------------------------------------------------------------------------------------------
def textless(case: Case) -> MTPHead:
    """The head of a case on a trunk that embeds and scores no tokens."""
    shared = {"private": False} if accepts(case.name, "private") else {}
    head = make(Case(case.name, {**case.settings, **shared}))
    head.bind(Binding(embed=None, unembed=None, weight=None, norm=trunk().norm))
    return head


@where(lambda head: head.drafts_as_trained and not head.needs_tokens, CASES)
@torch.no_grad()
def test_states_of_any_vectors_are_drafted_as_trained(case: Case) -> None:
    """Positions of several channels: there are no tokens, only what an LM made of them."""
    head = textless(case)
    hidden, _ = texts(head)
    x = torch.randn(*hidden.shape[:2], SHAPE.dim, generator=torch.Generator().manual_seed(9))
    trained, state, end = dict(head.unroll_states(LMOutput(hidden), x)), new_state(head, 2), x.shape[1]
    for t in range(end - head.offsets[0] + 1):
        feed(head, state, hidden, x, [t, t], [1, 1])
        for offset, states in zip(head.offsets, draft_states(head, state, x[:, t + 2 :]), strict=False):
            if t + offset <= end:
                near(states, trained[offset][:, t])


@where()
@torch.no_grad()
def test_scores_of_trunks_without_text_are_refused(case: Case) -> None:
    head = textless(case)
    hidden, tokens = texts(head)
    with pytest.raises(ValueError, match="trunk without text"):
        next(head.unroll(LMOutput(hidden), tokens))
    state = new_state(head, 2)
    feed(head, state, hidden, tokens, [0, 0], [3, 2])
    with pytest.raises(ValueError, match="trunk without text"):
        head.scores(head.root(state), 0, tokens[:, 0])
    head.prepare()


@where(setting="private")
def test_layers_of_its_own_need_a_trunk_with_text(case: Case) -> None:
    for setting in ({"private": True}, {"private": False, "draft_vocab": 5}):
        head = plugins.build("heads", {"name": case.name, **case.settings, **setting}, shape=SHAPE)
        with pytest.raises(ValueError, match="trunk without text"):
            head.bind(Binding(embed=None, unembed=None, weight=None, norm=trunk().norm))


# -- rows that join and leave ---------------------------------------------------------------------------------------
@where(among=CASES)
@torch.inference_mode()
def test_a_row_that_joins_others_goes_on_as_alone(case: Case) -> None:
    head = make(case)
    hidden, tokens = texts(head, 3)
    others, alone = new_state(head, 2), new_state(head, 1)
    feed(head, others, hidden[:2], tokens[:2], [0, 0], [2, 3])
    list(draft(head, others, tokens[:2, 3:5]))
    feed(head, others, hidden[:2], tokens[:2], [2, 3], [0, 1])  # what was drafted leaves; row 0 rests
    feed(head, alone, hidden[2:], tokens[2:], [0], [4])
    batch = put(widen(others.clone(), 4), 2, alone.clone())
    left = select(batch, torch.tensor([2, 0]))
    more = [(batch, [0, 1, 2, 2], [2, 4, 4, 0]), (left, [2, 0], [4, 2]), (alone, [2], [4])]
    for state, rows, begin in more:
        count = [int(n > 0) for n in begin]
        feed(head, state, hidden[rows], tokens[rows], begin, count)
    drafts = []
    for state, rows, begin in more:
        true = torch.stack([tokens[b, n + 1 : n + 3] for b, n in zip(rows, begin, strict=True)])
        drafts.append(torch.stack(list(draft(head, state, true)), 1))
    near(drafts[0][2:3], drafts[2])
    near(drafts[1][:1], drafts[2])
    near(drafts[1][1:], drafts[0][:1])
    again = new_state(head, 2)
    feed(head, again, hidden[:2], tokens[:2], [0, 0], [3, 5])
    near(drafts[0][:2], torch.stack(list(draft(head, again, torch.stack([tokens[0, 3:5], tokens[1, 5:7]]))), 1))
