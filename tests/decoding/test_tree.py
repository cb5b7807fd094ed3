"""Trees of drafts: which nodes they have, that the greedy text is the model's own, and what the statistics count."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from speech_mtp.decoding import text
from speech_mtp.decoding.base import DecodingRule
from speech_mtp.decoding.lookup import Lookup
from speech_mtp.decoding.matrix import support, support_matrix
from speech_mtp.decoding.sampling import gumbel
from speech_mtp.decoding.tree import Tree, levels_of, static_tree
from speech_mtp.decoding.vanilla import Vanilla
from speech_mtp.heads.leap import Leap
from speech_mtp.heads.medusa import Medusa
from speech_mtp.types import Draft, Sampling
from tests.decoding.walk import Walk, bound, proposed, tiny_text_lm

LM = tiny_text_lm(7)
PROMPTS = [[0, 1, 2, 0, 1], [3, 1, 1], [5]]
GREEDY, WARM = Sampling(temperature=0), Sampling(temperature=0.7, seed=4)
PATHS = [[0], [1], [2], [0, 0], [0, 1], [1, 0], [0, 0, 0]]


def drafted(rule: Tree, sampling: Sampling = GREEDY) -> tuple[text.TextRun, Draft]:
    run = text.start(LM, PROMPTS, sampling, rule)
    return run, proposed(run)


def paths_of(draft: Draft, b: int) -> dict[int, tuple[int, ...]]:
    """The tokens on the way to every node of row b that can be reached."""
    paths: dict[int, tuple[int, ...]] = {0: ()}
    tokens, parents = draft.tokens[b, :, 0].tolist(), draft.parents[b].tolist()
    for i in range(1, len(tokens)):
        assert parents[i] < i
        if parents[i] in paths:
            paths[i] = (*paths[parents[i]], tokens[i])
    return paths


@torch.inference_mode()
def scores_after(head: Walk, run: text.TextRun, b: int, path: tuple[int, ...]) -> Tensor:
    """The head's log-probabilities after a path, walked alone; with the noise that the trunk will draw with, if any."""
    state = run.rows.head.clone()
    states = head.root(state)[:, None]
    for d, token in enumerate(path):
        x = head.embed(torch.full((len(PROMPTS), 1), token))
        states = head.expand(state, x, torch.full((len(PROMPTS), 1), d - 1))
    scores, sampling = states[b, 0].matmul(head.output), run.rows.sampling.settings[b]
    if sampling.temperature:
        position = run.rows.place.position[b] + len(path)
        noise = gumbel(torch.tensor(sampling.seed), position, 0, torch.arange(LM.vocab_size))
        scores = scores / sampling.temperature + noise
    return scores.log_softmax(-1)


@pytest.mark.parametrize("sampling", [GREEDY, WARM])
def test_a_dynamic_tree_has_the_likeliest_paths_of_all(sampling: Sampling) -> None:
    head = bound(Walk, LM)
    run, draft = drafted(Tree(head, nodes=9, depth=2, top_k=7), sampling)
    for b in range(len(PROMPTS)):
        chance: dict[tuple[int, ...], float] = {(): 0.0}
        for path in [(x,) for x in range(7)] + list(product(range(7), repeat=2)):
            chance[path] = chance[path[:-1]] + float(scores_after(head, run, b, path[:-1])[path[-1]])
        best = sorted(chance, key=lambda path: -chance[path])[:10]
        assert set(paths_of(draft, b).values()) == set(best)
    assert len({tuple(row) for row in draft.parents.tolist()}) > 1, "rows grow trees of their own"


@pytest.mark.parametrize("sampling", [GREEDY, WARM])
def test_a_static_tree_follows_ranks(sampling: Sampling) -> None:
    head = bound(Walk, LM)
    run, draft = drafted(Tree(head, "static", paths=PATHS), sampling)
    for b in range(len(PROMPTS)):
        found = paths_of(draft, b)
        for i, ranks in enumerate(PATHS, 1):
            tokens: tuple[int, ...] = ()
            for rank in ranks:
                order = scores_after(head, run, b, tokens).argsort(descending=True)
                tokens = (*tokens, int(order[rank]))
            assert found[i] == tokens


def test_tokens_that_the_law_excludes_are_not_drafted() -> None:
    _, draft = drafted(Tree(bound(Walk, LM), "static", paths=PATHS), Sampling(top_k=1))
    assert [sorted(len(path) for path in paths_of(draft, b).values()) for b in range(3)] == [[0, 1, 2, 3]] * 3
    _, draft = drafted(Tree(bound(Walk, LM), nodes=20, depth=3), Sampling(top_k=1))
    assert draft.tokens.shape[1] == 4


def test_unlikely_nodes_are_left_out() -> None:
    head = bound(Walk, LM)
    (_, all_), (run, few) = drafted(Tree(head, nodes=12)), drafted(Tree(head, nodes=12, confidence=0.2))
    likely = [
        [path for path in paths_of(all_, b).values() if chance(head, run, b, path) > 0.2] for b in range(len(PROMPTS))
    ]
    assert [sorted(paths_of(few, b).values()) for b in range(len(PROMPTS))] == [sorted(paths) for paths in likely]
    assert few.tokens.shape[1] == max(map(len, likely)) < 13
    assert drafted(Tree(head, confidence=0.99))[1].tokens.shape[1] == 1


def chance(head: Walk, run: text.TextRun, b: int, path: tuple[int, ...]) -> float:
    steps = [scores_after(head, run, b, path[:d])[token] for d, token in enumerate(path)]
    return float(torch.stack([torch.zeros(()), *steps]).sum().exp())


def test_measured_accuracies_make_the_likeliest_tree() -> None:
    accuracies = [[0.6, 0.2, 0.1], [0.5, 0.3, 0.0], [0.4, 0.1]]
    values = {}
    for depth in (1, 2, 3):
        for path in product(*(range(len(row)) for row in accuracies[:depth])):
            values[path] = float(torch.tensor([accuracies[d][r] for d, r in enumerate(path)]).prod())
    tree = static_tree(accuracies, 7)
    best = sorted(values.values(), reverse=True)[:7]
    assert [values[path] for path in tree] == pytest.approx(best)
    assert len(levels_of(tree)) == max(map(len, tree))
    everything = static_tree(accuracies, 100)
    assert sorted(everything) == sorted(path for path, value in values.items() if value > 0)
    with pytest.raises(ValueError, match="not in 0 to 1"):
        static_tree([[1.2]], 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": "static", "paths": [[0], [1, 0]]}, "its parent"),
        ({"shape": "static", "paths": []}, "one or more lists"),
        ({"shape": "static", "paths": [[7]]}, "does not have"),
        ({"shape": "static"}, "one of them"),
        ({"paths": [[0]]}, "has none"),
        ({"shape": "static", "paths": [[0]], "confidence": 0.1}, "settings of dynamic trees"),
        ({"shape": "round"}, "must be 'static' or 'dynamic'"),
        ({"top_k": 0}, "positive"),
        ({"acceptance": "maybe"}, "must be one of"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tree(bound(Walk, LM), **settings)  # type: ignore[arg-type]


def test_a_tree_is_no_deeper_than_its_head() -> None:
    head = bound(Medusa, LM, num_heads=2)
    assert Tree(head).depth == 2
    with pytest.raises(ValueError, match="drafts 2 tokens"):
        Tree(head, depth=3)
    with pytest.raises(ValueError, match="cannot draft with Leap"):
        Tree(bound(Leap, LM))


RULES: list[DecodingRule] = [
    Tree(bound(Walk, LM), "static", paths=PATHS),
    Tree(bound(Walk, LM), nodes=6, depth=5),
    Tree(bound(Walk, LM, draft_vocab=4), acceptance="typical"),  # exact when greedy
    Tree(bound(Medusa, LM, num_heads=3), "static", accuracies=[[0.5, 0.3], [0.4, 0.3], [0.2, 0.1]], nodes=8),
    Tree(bound(Walk, LM), payoff={"cost": 1.3, "trial": 2, "rest": 3}),
    Lookup(),
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_text_is_the_model_s(rule: DecodingRule, penalty: float) -> None:
    def answers(rule: DecodingRule) -> tuple[list[list[int]], text.Statistics]:
        run = text.start(LM, PROMPTS, Sampling(temperature=0, repetition_penalty=penalty), rule, 24)
        while run.advance() is not None:
            pass
        return run.tokens, run.statistics

    said, statistics = answers(rule)
    assert said == answers(Vanilla())[0]
    assert statistics.emitted == 24 * 3
    # Every forward of a row gives what was kept and one token more; the last draft may fill its last place.
    assert 0 <= statistics.forwards + sum(statistics.kept) - statistics.emitted <= 3
    assert sum(statistics.kept) > 0
    assert all(a >= b for a, b in zip(statistics.kept, statistics.tried[1:], strict=False))


def test_a_row_of_one_token_drafts_after_it() -> None:
    head = bound(Walk, LM)
    for prompts in (PROMPTS, [[5]]):
        run = text.start(LM, prompts, GREEDY, Tree(head))
        proposed(run)
        assert torch.equal(run.rows.head.last[-1], head.embed(torch.tensor(5)))


def test_the_matrix_asks_every_rule_about_every_head() -> None:
    table = support()
    assert table["tree"]["medusa"] is True
    assert table["tree"]["leap"] is False
    assert table["cascade"] == table["tree"]
    assert table["leap"]["leap"] is True
    assert set(table["vanilla"].values()) == set(table["lookup"].values()) == {None}
    lines = support_matrix().splitlines()
    assert lines[0].split() == ["head", *table]
    assert {line.split()[0] for line in lines[1:]} == set(table["tree"])
