"""The law of sampled text is that of the model, whatever drafts it: against the exact law of every short answer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import cache

import pytest
import torch

from speech_mtp.decoding import text
from speech_mtp.decoding.base import DecodingRule
from speech_mtp.decoding.cascade import Cascade
from speech_mtp.decoding.chain import Chain
from speech_mtp.decoding.laws import TextLaw
from speech_mtp.decoding.lookup import Lookup
from speech_mtp.decoding.sampling import TARGET, adjust, choose, row_seeds, uniform
from speech_mtp.decoding.tree import Tree
from speech_mtp.decoding.vanilla import Vanilla
from speech_mtp.heads.dspark import DSpark
from speech_mtp.heads.medusa import Medusa
from speech_mtp.types import Draft, RowSampling, Sampling
from tests.decoding.walk import Walk, bound, proposed, tiny_text_lm

END, VOCAB, NEW, ROWS = 4, 5, 3, 1000
LM = tiny_text_lm(VOCAB, end=END, scale=0.4)
PROMPTS = [[0, 1, 2, 0, 1], [3, 1, 1]]
PLAIN = Sampling()
SHAPED = Sampling(temperature=0.8, top_k=4, top_p=0.9, repetition_penalty=1.4)
Answer = tuple[int, ...]


def law_of_next(said: list[int], sampling: Sampling) -> list[float]:
    """Penalty, temperature, top-k and top-p, one after the other, for one text."""
    with torch.inference_mode():
        out = LM(torch.tensor([said]), torch.tensor([len(said)]))
        logits = LM.output.logits(out.top[0, -1]).double().tolist()
    for token in set(said):
        logits[token] *= sampling.repetition_penalty ** (-1 if logits[token] > 0 else 1)
    ranked = sorted(range(VOCAB), key=lambda token: -logits[token])[: sampling.top_k or VOCAB]
    weight = {token: math.exp(logits[token] / sampling.temperature) for token in ranked}
    kept, before = {}, 0.0
    for token in ranked:
        if before <= sampling.top_p * sum(weight.values()):
            kept[token] = weight[token]
        before += weight[token]
    return [kept.get(token, 0.0) / sum(kept.values()) for token in range(VOCAB)]


@cache
def exact(prompt: tuple[int, ...], sampling: Sampling) -> dict[Answer, float]:
    """The probability of every answer of up to NEW tokens."""
    law: dict[Answer, float] = {}
    open_: dict[Answer, float] = {(): 1.0}
    for _ in range(NEW):
        longer = {
            (*answer, token): chance * p
            for answer, chance in open_.items()
            for token, p in enumerate(law_of_next([*prompt, *answer], sampling))
            if p
        }
        law.update({answer: p for answer, p in longer.items() if answer[-1] == END})
        open_ = {answer: p for answer, p in longer.items() if answer[-1] != END}
    return {**law, **open_}


def answered(rule: DecodingRule, sampling: Sampling) -> text.TextRun:
    """ROWS answers to each of PROMPTS, all in one batch, every row with a seed of its own."""
    rows = ROWS * len(PROMPTS)
    run = text.start(LM, PROMPTS * ROWS, sampling, rule, NEW, seeds=torch.arange(rows) + 7)
    run.complete()
    return run


@cache
def plainly(sampling: Sampling) -> list[list[int]]:
    """The answers of plain decoding."""
    return answered(Vanilla(), sampling).tokens


def counted(run: text.TextRun) -> list[Counter[Answer]]:
    """How often every answer was given, by prompt."""
    return [Counter(map(tuple, run.tokens[i :: len(PROMPTS)])) for i in range(len(PROMPTS))]


def surprise(counts: Counter[Answer], law: dict[Answer, float]) -> tuple[float, float]:
    """Pearson's chi-square as a standard normal number (Wilson and Hilferty 1931), rare answers together; and the total
    variation in units of what chance alone gives on average."""
    n = counts.total()
    common = [(counts[answer], n * p) for answer, p in law.items() if n * p >= 5]
    cells = [*common, (n - sum(seen for seen, _ in common), n - sum(expected for _, expected in common))]
    cells = [(seen, expected) for seen, expected in cells if expected > 1e-6 * n]
    square = sum((seen - expected) ** 2 / expected for seen, expected in cells)
    k = len(cells) - 1
    z = ((square / k) ** (1 / 3) - (1 - 2 / (9 * k))) / math.sqrt(2 / (9 * k))
    distance = sum(abs(counts[answer] / n - law.get(answer, 0.0)) for answer in counts.keys() | law.keys()) / 2
    noise = sum(math.sqrt(p * (1 - p) / (2 * math.pi * n)) for p in law.values())
    return z, distance / noise


def has_the_law(counts: list[Counter[Answer]], sampling: Sampling) -> bool:
    laws = [exact(tuple(prompt), sampling) for prompt in PROMPTS]
    if any(seen.keys() - law.keys() for law, seen in zip(laws, counts, strict=True)):
        return False
    found = [surprise(seen, law) for law, seen in zip(laws, counts, strict=True)]
    return all(z < 3.5 and distance < 1.8 for z, distance in found)


def dspark() -> DSpark:
    torch.manual_seed(2)
    head = bound(DSpark, LM, num_drafts=2, num_layers=1)
    torch.nn.init.normal_(head.bias.weight)
    torch.nn.init.normal_(head.before.weight, std=0.3)
    return head


def reduced() -> Walk:
    """Drafts three tokens only, which are not the first three."""
    head: Walk = bound(Walk, LM, draft_vocab=3)
    head.set_vocabulary(torch.tensor([LM.vocab_size - 1, 0, 2]))
    return head


RULES: dict[str, Callable[[], DecodingRule]] = {
    "vanilla": Vanilla,
    "chain": lambda: Chain(bound(Walk, LM)),
    "rejection chain": lambda: Chain(bound(Walk, LM), rejection=True),
    "rejection chain of a reduced vocabulary": lambda: Chain(reduced(), rejection=True),
    "rejection chain of a block head": lambda: Chain(dspark(), rejection=True),
    "rejection chain that pauses": lambda: Chain(
        bound(Walk, LM), 2, rejection=True, payoff={"cost": 9.0, "trial": 1, "rest": 1}
    ),
    "chain of a reduced vocabulary": lambda: Chain(reduced()),
    "tree of a reduced vocabulary": lambda: Tree(reduced(), nodes=6, depth=3, top_k=2),
    "chain of a block head": lambda: Chain(dspark()),
    "chain that pauses": lambda: Chain(bound(Walk, LM), 2, payoff={"cost": 9.0, "trial": 1, "rest": 1}),
    "static tree": lambda: Tree(bound(Walk, LM), "static", paths=[[0], [1], [2], [0, 0], [0, 1], [1, 0], [0, 0, 0]]),
    "dynamic tree": lambda: Tree(bound(Walk, LM), nodes=6, depth=3, top_k=3),
    "dynamic tree of a parallel head": lambda: Tree(bound(Medusa, LM, num_heads=2), nodes=5, top_k=2),
    "lookup": lambda: Lookup(depth=2, max_ngram=2),
    "cascade": lambda: Cascade(bound(Walk, LM), 9, 2, 2, lookup_depth=3, sure_ngram=2, max_ngram=3, min_ngram=1),
    "cascade of long lookups": lambda: Cascade(bound(Walk, LM), 4, 3, 1, lookup_depth=2, sure_ngram=1, max_ngram=2),
    "cascade that pauses": lambda: Cascade(
        bound(Walk, LM), sure_ngram=2, max_ngram=2, payoff={"cost": 9.0, "trial": 1, "rest": 1}
    ),
}


@pytest.mark.parametrize("settings", [{"temperature": 0.7, "top_p": 0.8}, {"temperature": 0.0}, {"top_k": 2}])
def test_the_law_of_some_tokens_is_that_of_all_without_the_others(settings: dict[str, float]) -> None:
    head, law = reduced(), TextLaw(LM)
    run = text.start(LM, [PROMPTS[0]], Sampling(repetition_penalty=1.7, **settings), max_new_tokens=3)
    scores = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0))
    tokens, parents = torch.cat([run.rows.last, torch.tensor([[2]])], 1), torch.tensor([[-1, 0]])
    draft = Draft(tokens[..., None], parents)

    def full(scores: torch.Tensor) -> torch.Tensor:
        wide = scores.new_full((1, 2, VOCAB), float("-inf"))
        wide[..., head.token_map] = scores
        return wide

    some = adjust(law.penalised(run.rows, scores, draft, ids=head.token_map), run.rows.sampling)
    whole = adjust(law.penalised(run.rows, full(scores), draft), run.rows.sampling)
    assert torch.equal(full(some), whole)
    assert not torch.equal(some, scores)


@pytest.mark.parametrize(
    ("name", "sampling"),
    [*((name, PLAIN) for name in RULES), *((name, SHAPED) for name in RULES if "of a" not in name)],
)
def test_the_law_of_the_text_is_the_model_s(name: str, sampling: Sampling) -> None:
    rule = RULES[name]()
    run = answered(rule, sampling)
    statistics = run.statistics
    assert rule.lossless
    assert has_the_law(counted(run), sampling)
    assert (run.tokens == plainly(sampling)) == ("rejection" not in name), "all else gives the text of the seed"
    if not isinstance(rule, Vanilla):
        assert min(statistics.kept[:2]) > 5, "drafts must matter at two depths"
        assert statistics.kept[0] < statistics.tried[0] - 100


@pytest.mark.parametrize(("shape", "acceptance"), [(Chain, "typical"), (Tree, {"kind": "top_k", "k": 3})])
def test_lossy_acceptance_says_so_and_is_seen(shape: type[Chain | Tree], acceptance: str | dict[str, object]) -> None:
    rule = shape(bound(Walk, LM), acceptance=acceptance)
    assert not rule.lossless
    assert not has_the_law(counted(answered(rule, PLAIN)), PLAIN)


@pytest.mark.parametrize("settings", [{"rejection": True}, {"acceptance": "typical"}])
@pytest.mark.parametrize("vocabulary", ["whole", "reduced"])
def test_a_greedy_row_stays_greedy_among_sampled_ones(settings: dict[str, object], vocabulary: str) -> None:
    greedy = Sampling(temperature=0, repetition_penalty=1.4)
    expected = text.start(LM, PROMPTS, greedy, max_new_tokens=12).complete()
    head = reduced() if vocabulary == "reduced" else bound(Walk, LM)
    run = text.start(LM, PROMPTS * 8, PLAIN, Chain(head, **settings), 12)  # type: ignore[arg-type]
    run.rows.sampling = RowSampling([greedy, greedy, *(Sampling(seed=seed) for seed in range(14))])
    assert run.complete()[:2] == expected
    assert len({tuple(said) for said in run.tokens[2:]}) > 4
    assert sum(run.statistics.kept) > 0


def test_a_draft_is_cut_before_its_token_is_drawn() -> None:
    """A cut that saw the token would take the unlikely ones out of the draft's law."""
    head = bound(Walk, LM)
    run = text.start(LM, PROMPTS[:1], PLAIN, Chain(head))
    scores = head.scores(head.root(run.rows.head), 0, run.rows.last[:, 0])
    best = float(scores.softmax(-1).max())

    def lengths(confidence: float) -> set[bool]:
        rule, found = Chain(head, 1, confidence=confidence, rejection=True), set()
        for seed in range(30):
            run.rows.sampling = RowSampling([Sampling(seed=seed)])
            found.add(proposed(run, rule).tokens.shape[1] > 1)
        return found

    assert lengths(0.99 * best) == {True}
    assert lengths(1.01 * best) == {False}


def test_noise_never_chooses_what_is_excluded() -> None:
    """The largest 24-bit number, here the tenth of this seed, once became 1 and its noise infinite."""
    seed, position = torch.tensor([164682]), torch.tensor([0])
    assert uniform(seed, position, 0, TARGET, torch.arange(16)).max() == 1 - 2**-24
    logits = torch.full((1, 16), float("-inf"))
    logits[0, 3] = 0.0
    assert choose(logits, RowSampling([Sampling(seed=int(seed))]), position, 0).item() == 3


def test_rows_of_one_prompt_differ_and_each_is_the_same_alone() -> None:
    sampling = Sampling(seed=11)
    together = text.start(LM, PROMPTS[:1] * 6, sampling, max_new_tokens=12).complete()
    assert len({tuple(row) for row in together}) > 3
    assert text.start(LM, PROMPTS[:1], sampling, max_new_tokens=12).complete() == together[:1]
    seeds = row_seeds(sampling.seed, 6, LM.device)
    assert int(seeds[0]) == sampling.seed
    for row in range(6):
        steps = text.generate(LM, PROMPTS[:1], sampling, max_new_tokens=12, seeds=seeds[row : row + 1])
        assert [token for step in steps for token in step[0]] == together[row]


def test_rows_of_two_runs_have_seeds_of_their_own() -> None:
    every = torch.cat([row_seeds(seed, 64, LM.device) for seed in range(64)])
    assert len(every.unique()) == 64 * 64
