"""Lookup or head: which row is drafted by what, how both drafts make one, and that the text is the model's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from speech_mtp import plugins
from speech_mtp.decoding import catalogue, text
from speech_mtp.decoding._drafting import HeadRule
from speech_mtp.decoding.cascade import Cascade, joined
from speech_mtp.decoding.lookup import Lookup
from speech_mtp.decoding.payoff import Payoff
from speech_mtp.decoding.tree import Tree
from speech_mtp.decoding.vanilla import Vanilla
from speech_mtp.heads.base import Binding, HeadState, MTPHead, TrunkShape
from speech_mtp.heads.leap import Leap
from speech_mtp.types import Draft, Finish, LMOutput, Sampling, Verdict
from tests.decoding.test_tree import paths_of
from tests.decoding.walk import Walk, bound, proposed, tiny_text_lm

LM = tiny_text_lm(9, num_layers=3)
GREEDY = Sampling(temperature=0)
REPEATS, FRESH, WEAK = [1, 2, 3, 4, 5, 1, 2, 3], [6, 7, 8, 0], [6, 7, 8, 0, 6, 7]


class Watched(Walk):
    """Counts how often it drafts."""

    drafts = 0

    def root(self, state: HeadState) -> Tensor:
        self.drafts += 1
        return super().root(state)


def started(rule: Cascade | Tree | Lookup, prompts: list[list[int]], count: int = 24) -> text.TextRun:
    return text.start(LM, prompts, GREEDY, rule, count)


def drafted(rule: Cascade | Tree | Lookup, prompts: list[list[int]]) -> Draft:
    return proposed(started(rule, prompts))


# -- who drafts ---------------------------------------------------------------------------------------------------
def test_a_long_match_drafts_alone_and_the_head_only_reads() -> None:
    head = bound(Watched, LM)
    run = started(Cascade(head, lookup_depth=4), [REPEATS])
    alone = drafted(Lookup(depth=4), [REPEATS])
    draft = proposed(run)
    assert torch.equal(draft.tokens, alone.tokens)
    assert torch.equal(draft.parents, alone.parents)
    run.advance()
    assert head.drafts == 0
    heard = started(Tree(head), [REPEATS + run.tokens[0]])
    torch.testing.assert_close(run.rows.head.head.window, heard.rows.head.window)
    assert torch.equal(run.rows.head.head.last, head.embed(torch.tensor([run.tokens[0][-1]])))


def test_lookups_grow_while_they_are_kept_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = Cascade(bound(Walk, LM), lookup_depth=2, longest_lookup=6)
    run, sizes = started(rule, [REPEATS, REPEATS]), []
    for kept in (2, 4, 6, 5, 2):
        draft = proposed(run)
        sizes.append((draft.parents >= 0).sum(1).tolist())
        count = torch.tensor([kept, 1])
        found = Verdict(torch.zeros(2, 7).long(), count + 1, torch.zeros(2, 1).long(), count, count)
        monkeypatch.setattr(HeadRule, "accept", lambda *_, found=found: found)
        rule.accept(run.rows, draft, LMOutput(torch.zeros(2, 7, 1, 1)), run.law)
        run.rows.head.trust = torch.ones(2)
    assert sizes == [[2, 2], [4, 2], [6, 2], [6, 2], [2, 2]]
    run.rows.head.judged = False
    run.say([[1], [2]])
    assert run.rows.head.reach.tolist() == [2, 2]


def test_without_a_match_the_draft_is_the_tree_s() -> None:
    head = bound(Walk, LM)
    draft, tree = (
        drafted(Cascade(head, nodes=6, graft_nodes=0), [FRESH, WEAK]),
        drafted(Tree(head, nodes=6), [FRESH, WEAK]),
    )
    assert torch.equal(draft.tokens, tree.tokens)
    assert torch.equal(draft.parents, tree.parents)


@pytest.mark.parametrize("lookup_depth", [2, 12])
def test_rows_of_both_kinds_share_a_step(lookup_depth: int) -> None:
    head, prompts = bound(Walk, LM), [REPEATS, FRESH]
    draft = drafted(Cascade(head, nodes=6, lookup_depth=lookup_depth), prompts)
    looked = [int(token) for token in drafted(Lookup(lookup_depth), prompts).tokens[0, 1:, 0]]
    assert draft.tokens.shape[1] == 1 + max(6, lookup_depth)
    found = paths_of(draft, 0)
    assert set(found.values()) == {tuple(looked[:n]) for n in range(lookup_depth + 1)}
    tree = drafted(Tree(head, nodes=6), prompts)
    assert set(paths_of(draft, 1).values()) == set(paths_of(tree, 1).values())
    assert int((draft.parents[1] >= 0).sum()) == 6


def test_rows_that_have_ended_do_not_keep_the_head_drafting() -> None:
    head = bound(Watched, LM)
    run = started(Cascade(head), [REPEATS, FRESH])
    run.advance()
    assert head.drafts == 1, "the second row needs the head"
    run.finish[1] = Finish("stop")
    run.advance()
    run.rows.tokens[0, : run.rows.lengths[0]] = 5  # certainly a match
    before = head.drafts
    proposed(run)
    assert run.rows.head.going.tolist() == [True, False]
    assert run.rows.head.looked.tolist() == [True, False]
    assert head.drafts == before


# -- grafted branches -----------------------------------------------------------------------------------------------
def test_a_short_match_is_one_branch_more_where_nodes_are_left() -> None:
    head = bound(Walk, LM)
    settings = {"nodes": 9, "depth": 3, "top_k": 1, "confidence": 0.0}
    chain = set(paths_of(drafted(Tree(head, **settings), [WEAK]), 0).values())
    looked = [8, 0, 6, 7, 8, 0, 6, 7][:8]
    for graft, nodes in ((False, 3), (True, 9)):
        draft = drafted(Cascade(head, **settings, graft=graft, graft_nodes=0 if graft else None), [WEAK])
        assert set(paths_of(draft, 0).values()) - chain == {tuple(looked[:n]) for n in range(1, nodes - 2)}
    assert draft.tokens.shape[1] == 10
    assert set(paths_of(drafted(Cascade(head, **settings, min_ngram=3), [WEAK]), 0).values()) == chain
    draft = drafted(Cascade(head, nodes=3, depth=3, top_k=1, confidence=0.0, graft_nodes=2), [WEAK])
    assert set(paths_of(draft, 0).values()) - chain == {tuple(looked[:n]) for n in (1, 2)}


@st.composite
def trees(draw: st.DrawFn) -> list[tuple[int, int]]:
    """Nodes after node 0 as (parent, token), no two siblings alike; parent -1 only fills the row."""
    nodes: list[tuple[int, int]] = []
    for i in range(1, 1 + draw(st.integers(0, 6))):
        above = [p for p in range(i) if p == 0 or nodes[p - 1][0] >= 0]
        parent, token = draw(st.sampled_from(above)), draw(st.integers(0, 2))
        nodes.append((-1, token) if (parent, token) in nodes else (parent, token))
    return nodes


@given(
    st.lists(
        st.tuples(trees(), st.lists(st.integers(0, 2), min_size=4, max_size=4), st.booleans(), st.integers(0, 5)),
        min_size=1,
        max_size=3,
    )
)
def test_a_joined_branch_repeats_no_node(rows: list[tuple[list[tuple[int, int]], list[int], bool, int]]) -> None:
    width = 1 + max(len(nodes) for nodes, *_ in rows)
    both = torch.tensor([[(-1, 2), *nodes] + [(-1, 1)] * (width - 1 - len(nodes)) for nodes, *_ in rows])
    tree = Draft(both[..., 1:], both[..., 0])
    ahead, alone = (torch.tensor([row[i] for row in rows]) for i in (1, 2))
    room = torch.tensor([max(1, new) if only else new for *_, only, new in rows])
    draft = joined(tree, ahead, alone, room)
    for b, (_, branch, only, _) in enumerate(rows):
        known = {()} if only else set(paths_of(tree, b).values())
        added = [path for n in range(1, 5) if (path := tuple(branch[:n])) not in known][: int(room[b])]
        found = list(paths_of(draft, b).values())
        assert len(found) == len(set(found))
        assert set(found) == known | set(added)


# -- trust ----------------------------------------------------------------------------------------------------------
def test_the_less_trust_the_longer_the_match_that_is_needed() -> None:
    rule = Cascade(bound(Walk, LM))
    assert rule.needed(torch.tensor([1.0, 0.81, 0.4, 0.05, 0.0])).tolist() == [3, 4, 6, 8, 8]
    run = started(rule, [REPEATS, [*range(8), *range(8)], [1, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5]])
    looked = {}
    for trust in (1.0, 0.61, 0.0):
        run.rows.head.trust = torch.full((3,), trust)
        proposed(run)
        looked[trust] = run.rows.head.looked.tolist()
    assert looked == {1.0: [True] * 3, 0.61: [False, True, True], 0.0: [False, True, False]}


def test_trust_is_the_average_of_what_lookups_gave_and_is_new_in_every_turn() -> None:
    rule = Cascade(bound(Walk, LM), depth=2, lookup_depth=3, sure_ngram=1, max_ngram=2, memory=0.75)
    run = started(rule, [REPEATS, FRESH, WEAK], count=200)
    expected, seen = [1.0] * 3, set()
    for _ in range(20):
        before = run.rows.clone()
        new = run.advance()
        assert new is not None
        for b in range(3):
            if run.rows.head.looked[b]:
                worth = min(1.0, (len(new[b]) - 1) / 2)
                seen.add(worth)
                expected[b] += 0.25 * (worth - expected[b])
        assert run.rows.head.trust.tolist() == pytest.approx(expected)
        assert not torch.equal(before.head.trust, run.rows.head.trust) or not run.rows.head.looked.any()
    assert len(seen) > 1
    assert min(expected) < 0.9
    run.say([[1], [2], [3]])
    assert run.rows.head.trust.tolist() == [1.0] * 3


def test_a_rule_that_is_used_again_knows_nothing_of_the_last_run() -> None:
    rule = Cascade(bound(Walk, LM), sure_ngram=1, max_ngram=5)
    first, second = (started(rule, [REPEATS, FRESH]) for _ in range(2))
    for _ in range(4):
        first.advance()
    assert first.rows.head.trust.min() < 1
    assert second.rows.head.trust.tolist() == [1.0, 1.0]
    assert second.complete() == first.complete()
    assert second.statistics == first.statistics


# -- the text -------------------------------------------------------------------------------------------------------
def heads() -> list[str]:
    shape = TrunkShape(**LM.shape())
    return [
        name for name in plugins.names("heads") if catalogue.fits("cascade", plugins.build("heads", name, shape=shape))
    ]


def make(name: str) -> MTPHead:
    torch.manual_seed(6)
    head: MTPHead = plugins.build("heads", name, shape=TrunkShape(**LM.shape()))
    head.bind(Binding(**LM.binding()))
    with torch.no_grad():
        for weight in head.parameters():
            weight.add_(torch.randn_like(weight) * 0.3)
    return head.eval()


SETTINGS = [
    {"sure_ngram": 2, "max_ngram": 4, "min_ngram": 1, "confidence": 0.3},
    {"sure_ngram": 1, "max_ngram": 1, "top_k": 1, "depth": 2, "graft": False},
    {"sure_ngram": 2, "max_ngram": 2, "min_ngram": 1, "nodes": 20, "depth": 2, "top_k": 2},
]


@pytest.mark.parametrize("name", heads())
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("penalty", [1.0, 1.2])
def test_greedy_text_is_the_model_s_over_two_turns(name: str, settings: dict[str, object], penalty: float) -> None:
    prompts, later = [REPEATS, FRESH, [5]], [[3], [1, 2, 0], [7, 7]]
    sampling = Sampling(temperature=0, repetition_penalty=penalty)
    rule = Cascade(make(name), **settings)  # type: ignore[arg-type]
    run, peer = (text.start(LM, prompts, sampling, r, 16) for r in (rule, Vanilla()))
    kinds = set()
    for turn in range(2):
        while run.advance() is not None:
            looked, going = run.rows.head.looked, run.rows.head.going
            kinds.add((bool(looked.any()), bool((going & ~looked).any())))
        assert run.tokens == peer.complete()
        if not turn:
            run.say(later)
            peer.say(later)
    assert run.statistics.emitted == 2 * 3 * 16
    assert sum(run.statistics.kept) > 0
    assert (True, True) in kinds, "a step with rows of both kinds"


def test_lookups_go_on_while_the_head_rests() -> None:
    head = bound(Watched, LM)
    prompts = [REPEATS, FRESH]
    payoff = {"cost": 99.0, "trial": 1, "rest": 1000}
    run = text.start(LM, prompts, GREEDY, Cascade(head, sure_ngram=2, payoff=payoff), 40)
    kinds = []
    while run.advance() is not None:
        kinds.append((bool(run.rows.head.looked.any()), run.rule.paused))
    assert run.tokens == text.start(LM, prompts, GREEDY, Vanilla(), 40).complete()
    assert head.drafts == 1
    assert {(True, False), (False, True)} == set(kinds[1:])
    assert run.statistics.paused < run.statistics.forwards


def test_steps_of_lookups_alone_are_none_of_payoff_s_business() -> None:
    payoff = Payoff(cost=1.0)
    rule = Cascade(bound(Walk, LM), payoff=payoff)
    for prompt, counted in ((REPEATS, False), (FRESH, True)):
        run = started(rule, [prompt])
        proposed(run)
        assert payoff.running == counted


# -- settings -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sure_ngram": 9}, "sure_ngram 9 and max_ngram 8"),
        ({"min_ngram": 4}, "min_ngram 4, sure_ngram 3"),
        ({"min_ngram": 0}, "must rise from one"),
        ({"lookup_depth": 0}, "lookup_depth 0 and longest_lookup 0 must rise"),
        ({"longest_lookup": 7}, "lookup_depth 8 and longest_lookup 7 must rise"),
        ({"memory": 1.5}, "between 0 and 1"),
        ({"graft": False, "min_ngram": 1}, "settings of grafted branches"),
        ({"graft": False, "graft_nodes": 1}, "settings of grafted branches"),
        ({"graft_nodes": -1}, "graft_nodes is -1"),
        ({"nodes": 0}, "nodes 0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cascade(bound(Walk, LM), **settings)  # type: ignore[arg-type]


def test_leaps_are_refused_and_the_catalogue_knows_the_rule() -> None:
    with pytest.raises(ValueError, match="rule Cascade cannot draft with Leap"):
        Cascade(bound(Leap, LM))
    rule = catalogue.build({"name": "cascade", "sure_ngram": 4}, bound(Walk, LM))
    assert isinstance(rule, Cascade)
    assert rule.lossless
    assert not Cascade(bound(Walk, LM), acceptance="typical").lossless
    assert catalogue.label({"name": "cascade", "sure_ngram": 4}) == "cascade(sure_ngram=4)"
