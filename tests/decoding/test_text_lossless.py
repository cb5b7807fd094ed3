"""Every head with every rule gives the text of plain decoding, whatever is drafted; contrived drafts are counted."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from speech_mtp import plugins
from speech_mtp.decoding.base import DecodingRule
from speech_mtp.decoding.chain import Chain
from speech_mtp.decoding.leap import Leap
from speech_mtp.decoding.text import TextRun, start
from speech_mtp.heads.base import Binding, HeadState, MTPHead, ParallelHead, TrunkShape, source
from speech_mtp.heads.leap import Leap as LeapHead
from speech_mtp.heads.medusa import Medusa
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.types import RowSampling, Sampling
from tests.decoding.learned import foreseeable_lm, learned_head
from tests.llama import random_llama

PROMPTS = [[5, 9, 2], [7, 7, 30, 1, 12, 4, 22], [3, 18]]
LATER = [[8], [2, 40, 6, 6], [11, 12]]
STOP = 4  # the answer of the first prompt ends with its token of this number
TURN = 16  # tokens of a turn at most
PENALTY = 2.0


def tiny_lm(vocab_size: int = 41, num_layers: int = 3) -> TextLM:
    sizes = {"num_hidden_layers": num_layers, "max_position_embeddings": 256}
    return TextLM(random_llama(vocab_size, 32, 4, pad_token_id=0, **sizes))


@pytest.fixture(scope="module")
def lm() -> TextLM:
    return foreseeable_lm()


@pytest.fixture
def ending(lm: TextLM, answers: Callable[..., list[list[int]]]) -> Iterable[int]:
    """The model ends its answers with a token that it says."""
    end = answers(1.0)[0][STOP]
    lm.model.generation_config.eos_token_id = end
    yield end
    lm.model.generation_config.eos_token_id = None


@pytest.fixture(scope="module")
def answers(lm: TextLM) -> Callable[..., list[list[int]]]:
    """What ``transformers`` says, greedily and without ends: 24 tokens after every prompt."""

    @cache
    def say(penalty: float, end: int | None = None, prompts: tuple[tuple[int, ...], ...] = ()) -> list[list[int]]:
        said = []
        for prompt in prompts or PROMPTS:
            ids = torch.tensor([prompt])
            settings = {"do_sample": False, "repetition_penalty": penalty, "eos_token_id": end, "pad_token_id": 0}
            made = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, **settings)
            said.append(made[0, len(prompt) :].tolist())
        return said

    return say


def greedy(penalty: float = 1.0) -> Sampling:
    return Sampling(temperature=0, repetition_penalty=penalty)


# -- the matrix -------------------------------------------------------------------------------------------------
def make_head(name: str, lm: TextLM, noise: float = 0.3, **settings: Any) -> MTPHead:
    torch.manual_seed(6)
    head: MTPHead = plugins.build("heads", {"name": name, **settings}, shape=TrunkShape(**lm.shape()))
    head.bind(Binding(**lm.binding()))
    with torch.no_grad():
        for weight in head.parameters():
            weight.add_(torch.randn_like(weight) * noise)
    return head.eval()


def make_rule(name: str, head: MTPHead | None, **settings: Any) -> DecodingRule:
    needs = {} if head is None else {"head": head}
    rule: DecodingRule = plugins.build("decoding", {"name": name, **settings}, **needs)
    return rule


def rules() -> list[str]:
    """The files of ``speech_mtp/decoding`` that are lossless rules; one that cannot be imported fails in its tests."""

    def is_rule(name: str) -> bool:
        try:
            found = plugins.find("decoding", name)
        except ValueError:  # several classes: not a plug-in
            return False
        except Exception:
            return True
        return issubclass(found, DecodingRule)

    return [name for name in plugins.names("decoding") if is_rule(name)]


@cache
def pairs() -> list[tuple[str | None, str]]:
    """Every rule that needs no head, and every head with the rules that support it. What cannot be built is in."""
    lm, found = tiny_lm(), []

    @cache
    def head_of(name: str) -> MTPHead:
        return make_head(name, lm)

    def fits(head: str | None, rule: str) -> bool:
        try:
            cls = plugins.find("decoding", rule)
            if "head" not in inspect.signature(cls).parameters:
                return head is None
            return head is not None and bool(cls.supports(head_of(head)))
        except Exception:
            return True

    for rule in rules():
        found += [(head, rule) for head in (None, *plugins.names("heads")) if fits(head, rule)]
    return found


def run_to_end(run: TextRun) -> list[list[int]]:
    while run.advance() is not None:
        pass
    return run.tokens


def assert_drafts_matter(run: TextRun) -> None:
    """Second drafts are kept too, and others are rejected: or else it is plain decoding that is tested."""
    tried, kept = run.statistics.tried, run.statistics.kept
    assert len(kept) > 1
    assert min(kept[:2]) > 0
    assert sum(kept) < sum(tried)


def until(end: int, said: Sequence[int], at_most: int) -> list[int]:
    said = list(said[:at_most])
    return said[: said.index(end) + 1] if end in said else said


@pytest.mark.parametrize(("head", "rule"), pairs())
def test_the_text_is_that_of_plain_decoding_over_two_turns(
    lm: TextLM, answers: Callable[..., list[list[int]]], ending: int, head: str | None, rule: str
) -> None:
    built = None if head is None else learned_head(head)
    assert make_rule(rule, built).lossless
    run = start(lm, PROMPTS, greedy(), make_rule(rule, built), max_new_tokens=TURN)
    first = [until(ending, said, TURN) for said in answers(1.0)]
    assert run_to_end(run) == first
    reasons = [finish.reason for finish in run.finish if finish]
    assert reasons == ["stop" if said[-1] == ending else "length" for said in first]

    run.say(LATER)
    whole = [p + a + n for p, a, n in zip(PROMPTS, first, LATER, strict=True)]
    fresh = start(lm, whole, greedy(), make_rule(rule, built), max_new_tokens=TURN)
    with torch.inference_mode():
        drafts = [make_rule(rule, built).propose(r.rows.clone(), r.law) for r in (run, fresh)]
    assert torch.equal(drafts[0].tokens, drafts[1].tokens)
    second = [until(ending, said, TURN) for said in answers(1.0, None, tuple(map(tuple, whole)))]
    assert run_to_end(run) == second
    if rule != "vanilla":
        assert_drafts_matter(run)


@pytest.mark.parametrize(("head", "rule"), pairs())
def test_the_repetition_penalty_is_that_of_plain_decoding(
    lm: TextLM, answers: Callable[..., list[list[int]]], head: str | None, rule: str
) -> None:
    built = None if head is None else learned_head(head)
    run = start(lm, PROMPTS, greedy(PENALTY), make_rule(rule, built), max_new_tokens=TURN)
    assert run_to_end(run) == [said[:TURN] for said in answers(PENALTY)]
    if rule not in ("vanilla", "lookup"):  # what is penalised is what a lookup drafts
        assert_drafts_matter(run)


def test_a_cascade_looks_up_and_drafts(lm: TextLM, answers: Callable[..., list[list[int]]]) -> None:
    run = start(lm, PROMPTS, greedy(), make_rule("cascade", learned_head("hydra")), max_new_tokens=24)
    gained: dict[bool, int] = {True: 0, False: 0}
    while (new := run.advance()) is not None:
        for row, looked in zip(new, run.rows.head.looked.tolist(), strict=True):
            gained[looked] += max(0, len(row) - 1)
    assert run.tokens == answers(1.0)
    assert min(gained.values()) > 0


def test_the_scenarios_differ(answers: Callable[..., list[list[int]]], ending: int) -> None:
    first = [until(ending, said, TURN) for said in answers(1.0)]
    assert len({len(said) for said in first}) > 1
    assert all(a[:TURN] != b[:TURN] for a, b in zip(answers(1.0), answers(PENALTY), strict=True))
    assert all(len(set(said)) > 3 for said in answers(1.0))


# -- the same text for the same seed -----------------------------------------------------------------------------
WARM, HOT = {"temperature": 0.8, "top_p": 0.9}, {"temperature": 3.0, "top_p": 0.9}
MIXED = [
    Sampling(seed=3, **WARM),
    Sampling(seed=1, repetition_penalty=1.1, top_k=12, **WARM),
    Sampling(seed=1, **HOT),
    Sampling(seed=3, top_k=3, **HOT),
    Sampling(temperature=0, repetition_penalty=1.1),
    Sampling(seed=2, temperature=2.0, repetition_penalty=1.2, top_k=20),
]
"""Of rows of one batch, two for every prompt."""


def sampled(lm: TextLM, settings: Sequence[Sampling], rule: DecodingRule | None, first: int = 0) -> TextRun:
    """A run whose rows, from row ``first`` of MIXED on, have ``settings`` of their own; it has ended."""
    prompts = [PROMPTS[(first + b) % len(PROMPTS)] for b in range(len(settings))]
    run = start(lm, prompts, Sampling(), rule, max_new_tokens=TURN)
    run.rows.sampling = RowSampling(settings)
    run_to_end(run)
    return run


@pytest.fixture(scope="module")
def plainly(lm: TextLM) -> list[list[int]]:
    """What plain decoding says with the settings of MIXED, every row alone."""
    return [sampled(lm, [one], None, b).tokens[0] for b, one in enumerate(MIXED)]


@pytest.mark.parametrize(("head", "rule"), pairs())
def test_sampled_text_is_that_of_plain_decoding_of_the_same_seed(
    lm: TextLM, plainly: list[list[int]], head: str | None, rule: str
) -> None:
    run = sampled(lm, MIXED, make_rule(rule, None if head is None else learned_head(head)))
    assert run.tokens == plainly
    if rule not in ("vanilla", "lookup"):
        assert_drafts_matter(run)
        # Which rows keep drafts depends on how well the head was learned, and that on the processor's sums.
        keep = [one for one, counts in zip(MIXED, run.counts, strict=True) if sum(counts.kept)]
        assert len(keep) >= len(MIXED) // 2
        assert any(one.temperature > 0 and one.repetition_penalty == 1 for one in keep)
        assert any(one.temperature > 0 and one.repetition_penalty > 1 for one in keep)


@pytest.mark.parametrize(("head", "rule"), [("medusa", "chain"), ("eagle3", "tree"), ("hydra", "cascade")])
def test_a_sampled_row_is_the_same_alone(lm: TextLM, plainly: list[list[int]], head: str, rule: str) -> None:
    for b, one in enumerate(MIXED):
        run = sampled(lm, [one], make_rule(rule, learned_head(head)), b)
        assert run.tokens == [plainly[b]]
        assert sum(run.statistics.kept) > 0


def test_sampled_texts_differ(lm: TextLM, plainly: list[list[int]]) -> None:
    greedily = sampled(lm, [greedy()] * len(MIXED), None).tokens
    differ = [said != best for said, best in zip(plainly, greedily, strict=True)]
    assert sum(differ) >= 4, "chance and penalty matter"
    other = [replace(one, seed=one.seed + 7) for one in MIXED]
    assert sampled(lm, other, None).tokens != plainly


def test_the_penalty_of_one_row_never_touches_another_s(lm: TextLM) -> None:
    settings = [greedy(penalty) for penalty in (1.0, PENALTY, 1.0, 1.5, 1.0, 1.0)]
    for head, rule in ((None, "vanilla"), ("medusa", "chain"), ("eagle3", "tree"), ("hydra", "cascade")):
        said = sampled(lm, settings, make_rule(rule, None if head is None else learned_head(head))).tokens
        for b, one in enumerate(settings):
            alone = start(lm, [PROMPTS[b % 3]], one, max_new_tokens=TURN)
            assert said[b] == run_to_end(alone)[0]
        assert said[1] != said[4]


# -- the law of samples -----------------------------------------------------------------------------------------
ROWS, SMALL = 1200, 5


@pytest.fixture(scope="module")
def small_lm() -> TextLM:
    return tiny_lm(SMALL, 1)


@pytest.fixture(scope="module")
def law(small_lm: TextLM) -> Tensor:
    """The exact joint law of three tokens after [1, 2], at temperature 0.7 and top-k 4: ``[V, V, V]``."""
    grid = torch.cartesian_prod(*[torch.arange(SMALL)] * 3)
    texts = torch.cat([torch.tensor([[1, 2]]).expand(len(grid), -1), grid], 1)
    with torch.no_grad():
        logits = small_lm.model(texts).logits[:, 1:4] / 0.7
    logits = logits.masked_fill(logits < logits.topk(4).values[..., -1:], float("-inf"))
    p = logits.softmax(-1).gather(2, grid[..., None]).prod(1)
    return p.view(SMALL, SMALL, SMALL)


def one_head_each() -> list[tuple[str, str | None, dict[str, Any]]]:
    heads = {rule: head for head, rule in reversed(pairs())} | {"leap": "leap"}
    return [*((rule, head, {}) for rule, head in heads.items()), ("chain", "medusa", {"rejection": True})]


@pytest.mark.parametrize(("rule", "head", "settings"), one_head_each())
def test_samples_follow_the_trunks_law(
    small_lm: TextLM, law: Tensor, rule: str, head: str | None, settings: dict[str, Any]
) -> None:
    sampling = Sampling(temperature=0.7, top_k=4)
    built = make_rule(rule, None if head is None else make_head(head, small_lm, 0.05), **settings)
    run = start(small_lm, [[1, 2]] * ROWS, sampling, built, max_new_tokens=3, seeds=torch.arange(ROWS))
    said = torch.tensor(run_to_end(run))
    assert misfit(said, law) < 4
    assert misfit(said, torch.roll(law, 1, 0)) > 20


def misfit(said: Tensor, law: Tensor) -> float:
    """Pearson's chi-squared of samples ``[N, 3]``, in standard deviations above its mean; rare cells are one."""
    counts = torch.bincount((said * torch.tensor([SMALL**2, SMALL, 1])).sum(1), minlength=law.numel()).double()
    expected = law.flatten().double() * len(said)
    common = expected >= 5
    counts = torch.cat([counts[common], counts[~common].sum()[None]])
    expected = torch.cat([expected[common], expected[~common].sum()[None]]).clamp(min=1e-9)
    freedom = len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / (2 * freedom) ** 0.5)


# -- contrived drafts -------------------------------------------------------------------------------------------
@dataclass(kw_only=True)
class OracleState(HeadState):
    """``seen [B]`` positions have been read."""

    seen: Tensor


class Oracle(ParallelHead):
    """Knows the ``text`` that will come: names its token at positions p with ``right(p)``, elsewhere another."""

    def __init__(self, lm: TextLM, text: Sequence[int], offsets: tuple[int, ...], right: Callable[[int], bool]) -> None:
        super().__init__(TrunkShape(**lm.shape()), offsets)
        self.bind(Binding(**lm.binding()))
        told = [token if right(p) else (token + 1) % self.num_tokens for p, token in enumerate(text)]
        self.told = torch.tensor(told)

    def ahead(self, hidden: Tensor, j: int) -> Tensor:
        raise AssertionError("an oracle reads no states")

    def open(self, rows: int, device: torch.device, dtype: torch.dtype) -> OracleState:
        return OracleState(**vars(super().open(rows, device, dtype)), seen=torch.zeros(rows, dtype=torch.long))

    def read(self, state: OracleState, hidden: Tensor, x: Tensor, lengths: Tensor) -> None:
        super().read(state, hidden, x, lengths)
        state.seen = state.seen + lengths

    def at_age(self, state: OracleState, j: int, age: int) -> Tensor:
        position = state.seen - 1 - age + self.offsets[j]
        return torch.nn.functional.one_hot(self.told[position], self.num_tokens).float()

    def scores(self, states: Tensor, depth: int, before: Tensor) -> Tensor:
        return states


ORACLES = [(Chain, (2, 3, 4, 5), 4), (Leap, (2, 3, 4, 5), 4), (Leap, (3, 5, 7), 6), (Leap, (4, 7), 6)]


@pytest.mark.parametrize(("rule", "offsets", "depth"), ORACLES)
def test_drafts_that_are_always_never_and_sometimes_right(
    lm: TextLM, answers: Callable[..., list[list[int]]], rule: type[Chain], offsets: tuple[int, ...], depth: int
) -> None:
    prompt, answer = PROMPTS[1], answers(1.0)[1]
    text, gained = prompt + answer + [0] * 8, []
    for right in (lambda p: True, lambda p: False, lambda p: (p - len(prompt)) % 2 == 0):
        oracle = Oracle(lm, text, offsets, right)
        run = start(lm, [prompt], greedy(), rule(oracle), max_new_tokens=2 * (depth + 1))
        assert run_to_end(run) == [answer[: 2 * (depth + 1)]]
        gained.append((run.statistics.tokens_per_forward, run.statistics.acceptance))
    always, never, sometimes = gained
    assert always == (depth + 1, [1.0] * depth)
    assert never == (1.0, [0.0])
    assert sometimes == (2.0, [1.0, 0.0])


@pytest.mark.parametrize(("rule", "offsets", "depth"), ORACLES)
@pytest.mark.parametrize("by", ["end", "length"])
def test_a_cut_inside_an_accepted_draft_leaves_no_trace(
    lm: TextLM,
    answers: Callable[..., list[list[int]]],
    rule: type[Chain],
    offsets: tuple[int, ...],
    depth: int,
    by: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompt, answer = PROMPTS[1], answers(1.0)[1]
    count = next(n for n in range(2, depth + 1) if answer.index(answer[n - 1]) == n - 1)  # a first occurrence
    if by == "end":
        monkeypatch.setattr(lm.model.generation_config, "eos_token_id", answer[count - 1])
    whole = prompt + answer[:count] + LATER[1]
    (later,) = answers(1.0, answer[count - 1] if by == "end" else None, (tuple(whole),))
    text = whole + later + [0] * 40
    first = Oracle(lm, prompt + answer + [0] * 40, offsets, lambda p: True)
    run = start(lm, [prompt], greedy(), rule(first), max_new_tokens=20 if by == "end" else count)
    assert run.advance() == [answer[:count]]
    assert [finish.reason for finish in run.finish if finish] == ["stop" if by == "end" else "length"]
    assert run.rows.lengths.tolist() == [len(prompt) + count]
    assert run.answers[0] is not None
    run.rule.head, run.answers[0].max_new_tokens = Oracle(lm, text, offsets, lambda p: True), len(later)
    run.say([LATER[1]])
    assert run_to_end(run) == [later]


# -- what rules refuse, and the order of a leap -----------------------------------------------------------------
def test_a_chain_refuses_leaps_and_depths_beyond_the_head(lm: TextLM) -> None:
    shape = TrunkShape(**lm.shape())
    with pytest.raises(ValueError, match="rule Chain cannot draft with Leap"):
        Chain(LeapHead(shape))
    with pytest.raises(ValueError, match="drafts 4 tokens; depth 5"):
        Chain(Medusa(shape), depth=5)
    with pytest.raises(ValueError, match="drafts 6 tokens; depth 7"):
        Leap(LeapHead(shape), depth=7)
    assert Chain.supports(LeapHead(shape, stride=1))
    assert not Leap.supports(Oracle(lm, [0], (3, 7), bool))


@pytest.mark.parametrize("stride", [1, 2, 3, 5])
def test_the_order_of_a_leap_is_that_of_the_paper(stride: int) -> None:
    offsets = tuple(stride * j + 1 for j in range(1, 4))
    for ahead in range(2, offsets[-1] + 1):
        age = (1 - ahead) % stride
        assert source(offsets, ahead) == ((ahead + age - 1) // stride - 1, age)


@pytest.mark.parametrize("rejection", [False, True])
def test_a_leap_of_one_drafts_what_a_chain_drafts(lm: TextLM, rejection: bool) -> None:
    head = make_head("leap", lm, stride=1)
    drafts = []
    for rule in (Chain(head, rejection=rejection), Leap(head, rejection=rejection)):
        run = start(lm, PROMPTS, Sampling(seed=3), rule)
        with torch.inference_mode():
            drafts.append(rule.propose(run.rows, run.law))
    chain, leap = drafts
    assert torch.equal(chain.tokens, leap.tokens)
    assert (chain.q is not None) == rejection
    if chain.q is not None and leap.q is not None:
        assert torch.equal(chain.q, leap.q)


def test_confidence_and_depth_shorten_a_draft(lm: TextLM, answers: Callable[..., list[list[int]]]) -> None:
    head = make_head("medusa", lm)
    for rule, longest in ((Chain(head, depth=2), 3), (Chain(head, confidence=1.0), 1)):
        run = start(lm, PROMPTS, greedy(), rule, max_new_tokens=5)
        with torch.inference_mode():
            assert rule.propose(run.rows.clone(), run.law).tokens.shape[1] == longest
        assert run_to_end(run) == [said[:5] for said in answers(1.0)]
