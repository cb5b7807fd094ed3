"""Groups of speech are drafted and verified by the rules that serve text: the same seed gives the same codes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from speech_mtp import plugins
from speech_mtp.decoding import engine
from speech_mtp.decoding import sampling as noise
from speech_mtp.decoding.base import DecodingRule
from speech_mtp.decoding.laws import Guard, Law
from speech_mtp.heads.base import Binding, MTPHead, TrunkShape
from speech_mtp.lm.group_lm import GroupLM
from speech_mtp.lm.units import UnitMaker
from speech_mtp.types import Draft, Kind, Positions, RowSampling, Sampling, Status, TextUnits
from tests.decoding.test_engine import chi_square
from tests.lm.test_direct import direct_lm
from tests.lm.test_direct import maker as token_maker
from tests.lm.tiny import Letters, tiny_backbone
from tests.nn.test_blocks import needs_kernels
from tests.tiny import tiny_lm

TEXTS = ["the quick brown fox jumps over the lazy dog.", "hello.", "good morning, it is good"]
SEEDS = [4, 5, 9]
TIMBRE = torch.randn(3, 8, generator=torch.Generator().manual_seed(3))
MAKER = UnitMaker(tiny_backbone(), Letters())
SAMPLINGS = {
    "greedy": Sampling(temperature=0),
    "drawn": Sampling(temperature=0.9),
    "by kind": Sampling(temperature=0.8, stream_temperatures=(0.7, 1.0, 1.6)),
    "shaped": Sampling(temperature=0.7, top_k=3, top_p=0.9, repeat_window=3, repeat_penalty=4.0),
}


@cache
def model(kind: str) -> tuple[GroupLM, Callable[[list[str]], TextUnits]]:
    """Small vocabularies, so that what an untrained head guesses is often right."""
    if kind == "direct":
        return direct_lm(codebook_sizes=(3, 2), frames_per_group=1), token_maker().make
    layout = {"name": "prefix"} if kind == "prefix" else {"name": "aligned", "max_advance": 2, "max_stall": 2}
    if kind == "known":
        lm = tiny_lm((3, 2), frames_per_group=1, layout=layout, output="known")
        lm.output.know(torch.tensor([[0, 0], [1, 0], [1, 1], [2, 1]]))
        return lm, MAKER.make
    if kind == "prepared":  # groups are drawn at once, where there are kernels
        return tiny_lm((3, 2), scale=4.0, frames_per_group=1, layout=layout, dim=64, hidden=96).prepare(), MAKER.make
    return tiny_lm((3, 2), scale=2.0, frames_per_group=1, layout=layout), MAKER.make


def head_for(lm: GroupLM, name: str, **settings: Any) -> MTPHead:
    torch.manual_seed(7)
    small: dict[str, Any] = {"taps": (-1,)} if name in ("eagle3", "parallel", "dflash") else {}
    small |= {"private": False} if name == "eagle3" else {}
    head: MTPHead = plugins.build("heads", {"name": name, **small, **settings}, shape=TrunkShape(**lm.shape()))
    head.bind(Binding(**lm.binding()))
    return head.eval().requires_grad_(False)


def rule_for(lm: GroupLM, head: str, rule: str, **settings: Any) -> DecodingRule:
    built: DecodingRule = plugins.build("decoding", {"name": rule, **settings}, head=head_for(lm, head))
    return built


def spoken(
    lm: GroupLM, units: TextUnits, timbre: Tensor, sampling: Sampling, seeds: list[int], rule: DecodingRule | None
) -> tuple[list[list[list[int]]], engine.Run]:
    """The groups of every row, as the steps gave them, and the run."""
    run = engine.start(lm, units, timbre, sampling, rule, torch.tensor(seeds))
    rows: list[list[list[int]]] = [[] for _ in seeds]
    while (made := run.advance()) is not None and run.steps < 200:
        for row, new, count in zip(rows, made.new, made.lengths.tolist(), strict=True):
            assert len(new) == count
            row += new
    return rows, run


PAIRS = [
    *((head, rule) for head in ("medusa", "hydra", "eagle3", "fastmtp", "deepseek") for rule in ("chain", "tree")),
    ("leap", "leap"),
    ("medusa", "leap"),
    ("dflash", "chain"),
]


@pytest.mark.parametrize(
    ("kind", "head", "rule"),
    [
        *((kind, head, rule) for kind in ("aligned", "direct") for head, rule in PAIRS),
        *(("prepared", head, rule) for head, rule in (("eagle3", "tree"), ("medusa", "chain"))),
    ],
)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_codes_are_those_of_plain_decoding(kind: str, sampling: str, head: str, rule: str) -> None:
    lm, make = model(kind)
    units, settings = make(TEXTS), SAMPLINGS[sampling]
    plain, before = spoken(lm, units, TIMBRE, settings, SEEDS, None)
    drafted, run = spoken(lm, units, TIMBRE, settings, SEEDS, rule_for(lm, head, rule))
    assert drafted == plain
    assert run.finish == before.finish
    assert torch.equal(run.rows.place.pointer, before.rows.place.pointer)
    if sampling != "greedy":  # an untrained head and a greedy trunk may never agree
        assert sum(run.statistics.kept) > 0, "no draft was right"
        assert run.statistics.forwards < before.statistics.forwards


@needs_kernels
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_groups_drawn_at_once_are_those_drawn_channel_by_channel(
    sampling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for a sum that the last bit decides: with all masks, guards and settings of the rows."""
    lm, make = model("prepared")
    at_once, drawn = lm.draws_groups, []
    assert at_once is not None
    run = engine.start(lm, make(TEXTS), TIMBRE, SAMPLINGS[sampling], None, torch.tensor(SEEDS))
    original = run.law.chooser

    def both(rows: Any, draft: Draft, out: Any) -> Any:
        with monkeypatch.context() as without:
            without.setattr(lm, "draws_groups", None)
            by_channel = original(rows, draft, out)
        found = original(rows, draft, out)
        first = torch.zeros(len(SEEDS), dtype=torch.long)
        drawn.append((found(first, 0) == by_channel(first, 0)).all(1))
        return found

    monkeypatch.setattr(run.law, "chooser", both)
    while run.advance() is not None and run.steps < 40:
        pass
    same = torch.stack(drawn)
    assert same.numel() >= 60
    assert float(same.float().mean()) > 0.97


def test_every_kind_of_channel_has_its_temperature() -> None:
    """A channel with factor 0 is greedy whatever the seed; rows with other factors beside it change nothing."""
    lm, make = model("aligned")
    units = make([TEXTS[0]] * 2)
    cold = Sampling(temperature=0.9, stream_temperatures=(0.0, 0.0, 0.0))
    greedy, _ = spoken(lm, units, TIMBRE[:1].expand(2, -1), Sampling(temperature=0), [1, 2], None)
    assert spoken(lm, units, TIMBRE[:1].expand(2, -1), cold, [1, 2], None)[0] == greedy
    warm = Sampling(temperature=0.3, stream_temperatures=(3.0, 3.0, 3.0))
    same, _ = spoken(lm, units, TIMBRE[:1].expand(2, -1), Sampling(temperature=0.9), [1, 2], None)
    drawn, _ = spoken(lm, units, TIMBRE[:1].expand(2, -1), warm, [1, 2], None)
    assert [row[:1] for row in drawn] == [row[:1] for row in same]
    grouped = tiny_lm((3, 2), frames_per_group=2)
    run = engine.start(grouped, MAKER.make([TEXTS[0]]), TIMBRE[:1], Sampling(stream_temperatures=(0.1, 0.2, 0.3)))
    of_channel = run.law.settings(run.rows, 1)
    kinds = [grouped.kind_of(c) for c in range(5)]
    assert [float(of_channel[kind].temperature) for kind in kinds] == pytest.approx([0.1, 0.2, 0.3, 0.2, 0.3])
    settings = RowSampling([cold, Sampling(temperature=0.5)])
    assert settings.of_kind(2).temperature.tolist() == pytest.approx([0.0, 0.5])
    assert settings.repeated(2).of_kind(1).temperature.tolist() == pytest.approx([0.0, 0.0, 0.5, 0.5])
    for factors in ((1.0, 1.0), (1.0, 1.0, 1.0, 1.0)):
        with pytest.raises(ValueError, match=r"factors; give 3: one for the control"):
            engine.start(lm, units, TIMBRE[:1].expand(2, -1), Sampling(stream_temperatures=factors))
    with pytest.raises(ValueError, match="is 100 or more"):
        Sampling(temperature=2.0, stream_temperatures=(60.0, 1.0, 1.0))


@pytest.mark.parametrize("wrong", [(-0.1, 1.0, 1.0), (1.0, float("nan"), 1.0)])
def test_factors_that_are_none_are_refused(wrong: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="stream_temperatures are"):
        Sampling(stream_temperatures=wrong)


@pytest.mark.parametrize(("head", "rule"), [("medusa", "tree"), ("fastmtp", "chain"), ("leap", "leap")])
def test_groups_that_exist_are_drafted_and_verified_too(head: str, rule: str) -> None:
    lm, make = model("known")
    units, settings = make(TEXTS), SAMPLINGS["drawn"]
    plain, _ = spoken(lm, units, TIMBRE, settings, SEEDS, None)
    drafted, run = spoken(lm, units, TIMBRE, settings, SEEDS, rule_for(lm, head, rule))
    assert drafted == plain
    assert sum(run.statistics.kept) > 0, "no draft was right"
    assert {tuple(group[1:]) for row in plain for group in row} == {(0, 0), (1, 0), (1, 1), (2, 1)}


@pytest.mark.parametrize(("head", "rule"), [("medusa", "tree"), ("fastmtp", "chain"), ("leap", "leap")])
def test_a_row_alone_is_the_row_among_others(head: str, rule: str) -> None:
    lm, make = model("aligned")
    together, _ = spoken(lm, make(TEXTS), TIMBRE, SAMPLINGS["drawn"], SEEDS, rule_for(lm, head, rule))
    for b, text in enumerate(TEXTS):
        alone, _ = spoken(
            lm, make([text]), TIMBRE[b : b + 1], SAMPLINGS["drawn"], SEEDS[b : b + 1], rule_for(lm, head, rule)
        )
        assert alone[0] == together[b]


def test_second_drafts_are_kept_too() -> None:
    lm, make = model("aligned")
    _, run = spoken(lm, make(TEXTS), TIMBRE, SAMPLINGS["drawn"], SEEDS, rule_for(lm, "medusa", "tree", nodes=24))
    assert run.statistics.kept[0] >= run.statistics.kept[1] > 0
    assert run.statistics.tokens_per_forward > 1.2


# -- contrived drafts -------------------------------------------------------------------------------------------------
class Oracle(DecodingRule):
    """Drafts ``depth`` groups of ``known``, of which those at positions p with ``right(p)`` are what will come."""

    def __init__(
        self, known: list[list[int]], depth: int, right: Callable[[int], bool], sizes: tuple[int, ...]
    ) -> None:
        self.known, self.depth, self.right, self.sizes = known, depth, right, sizes

    def propose(self, rows: Any, law: Law) -> Draft:
        at = int(rows.place.position[0])
        nodes = [rows.last[0]]
        for p in range(at, at + self.depth):
            group = self.known[p] if p < len(self.known) else [0] * len(self.sizes)
            if not self.right(p):  # wrong in the last channel alone
                group = [*group[:-1], (group[-1] + 1) % self.sizes[-1]]
            nodes.append(torch.tensor(group))
        parents = torch.arange(-1, self.depth)[None]
        return Draft(torch.stack(nodes)[None], parents)


@pytest.mark.parametrize("kind", ["aligned", "prefix", "direct"])
def test_drafts_that_are_always_never_and_sometimes_right(kind: str) -> None:
    lm, make = model(kind)
    units, settings = make(TEXTS[:1]), SAMPLINGS["drawn"]
    for seed in range(500):  # a prefix ends by chance
        (plain,), before = spoken(lm, units, TIMBRE[:1], settings, [seed], None)
        if len(plain) > 8:
            break
    steps = {}
    for name, right in {"always": lambda p: True, "never": lambda p: False, "sometimes": lambda p: p % 2 == 0}.items():
        rule = Oracle(plain, 3, right, lm.layout.channel_sizes)
        (found,), run = spoken(lm, units, TIMBRE[:1], settings, [seed], rule)
        assert found == plain
        assert run.finish == before.finish
        assert run.rows.cache.lengths.tolist() == before.rows.cache.lengths.tolist()
        steps[name] = run.steps
    n = len(plain)
    assert n > 8
    assert steps["never"] == n
    assert steps["always"] == -(-n // 4)
    assert n // 2 <= steps["sometimes"] <= n // 2 + 1


def test_every_kept_group_is_given_with_its_pointer() -> None:
    lm, make = model("aligned")
    units = make(TEXTS[:1])
    run = engine.start(lm, units, TIMBRE[:1], Sampling(), seeds=torch.tensor([4]))
    pointers: list[int] = []
    groups: list[list[int]] = []
    while (made := run.advance()) is not None:
        pointers += made.pointers[0]
        groups += made.new[0]
    drafted = engine.start(
        lm, units, TIMBRE[:1], Sampling(), Oracle(groups, 5, lambda p: True, lm.layout.channel_sizes), torch.tensor([4])
    )
    found: list[int] = []
    while (made := drafted.advance()) is not None:
        assert len(made.pointers[0]) == len(made.new[0])
        found += made.pointers[0]
    assert found == pointers
    assert drafted.steps < run.steps / 4


@pytest.mark.parametrize("depth", [1, 4])
def test_a_row_that_waits_or_is_guarded_inside_a_draft_ends_there(depth: int) -> None:
    lm, make = model("aligned")
    units = make(TEXTS[:1])
    (plain,), _ = spoken(lm, units, TIMBRE[:1], Sampling(), [4], None)
    rule = Oracle(plain, depth, lambda p: True, lm.layout.channel_sizes)
    early = make(TEXTS[:1])
    early.complete[:] = False
    run = engine.start(lm, early, TIMBRE[:1], Sampling(), rule, torch.tensor([4]))
    got: list[list[int]] = []
    while (made := run.advance()) is not None:
        got += made.new[0]
    assert run.status == [Status.WAITING]
    assert got == plain[: len(got)]
    assert int(run.rows.place.pointer[0]) + lm.layout.ahead >= int(units.lengths[0])
    run.feed(0, units)
    while (made := run.advance()) is not None:
        got += made.new[0]
    assert got == plain

    guard = Guard(unit_s=0.0, spare_s=6 / 25)
    plainly = engine.start(lm, units, TIMBRE[:1], Sampling(), None, torch.tensor([4]), guard)
    guarded = engine.start(lm, units, TIMBRE[:1], Sampling(), rule, torch.tensor([4]), guard)
    for either in (plainly, guarded):
        while either.advance() is not None:
            continue
    assert guarded.finish == plainly.finish
    assert guarded.finish[0] is not None
    assert guarded.finish[0].reason == "length"
    assert int(guarded.rows.place.position[0]) == 7


# -- the law ----------------------------------------------------------------------------------------------------------
@torch.inference_mode()
def exact(lm: GroupLM, units: TextUnits, timbre: Tensor) -> tuple[Tensor, list[tuple[tuple[int, ...], ...]]]:
    """The probability of every pair of first groups, from teacher-forced forwards."""
    groups = list(product(*(range(size) for size in lm.layout.channel_sizes)))
    pairs = list(product(groups, groups))
    tokens = torch.tensor(pairs)  # [N, 2, C]
    n = len(tokens)
    fed = torch.cat([lm.layout.nothing(n)[:, None], tokens[:, :1]], 1)
    moved = lm.layout.move(torch.zeros(n, dtype=torch.long), tokens[:, 0, 0])
    pointer = torch.stack([torch.zeros_like(moved), moved], 1)
    at = torch.arange(2).expand(n, -1)
    positions = Positions(fed, torch.full((n, 2), int(Kind.SPEECH)), at, torch.zeros_like(at), pointer)
    many = TextUnits(**{k: v.expand(n, *v.shape[1:]) for k, v in units.__dict__.items() if v is not None})
    scores = lm.output.score(lm(positions, many, timbre.expand(n, -1)).top, tokens)
    chance = torch.zeros(n)
    for i in range(2):
        stalled = (moved == 0).long() * i
        mask = lm.layout.control_mask(pointer[:, i], many.lengths, many.complete, stalled)
        for c, score in enumerate(scores):
            logits = score[:, i].masked_fill(~mask, float("-inf")) if c == 0 else score[:, i]
            chance += logits.log_softmax(-1).gather(1, tokens[:, i, c : c + 1])[:, 0]
    return chance.exp(), pairs


@pytest.mark.parametrize(("head", "rule"), [(None, "vanilla"), ("medusa", "tree"), ("hydra", "chain")])
def test_groups_follow_the_models_law(head: str | None, rule: str) -> None:
    lm = tiny_lm((2, 2), scale=3.0, frames_per_group=1, layout={"name": "aligned", "max_advance": 1})
    units = MAKER.make(["hello."])
    law, pairs = exact(lm, units, TIMBRE[:1])
    assert float(law.sum()) == pytest.approx(1, abs=1e-4)
    rows, number = 1500, {pair: i for i, pair in enumerate(pairs)}
    many = TextUnits(**{k: v.expand(rows, *v.shape[1:]) for k, v in units.__dict__.items() if v is not None})
    built = None if head is None else rule_for(lm, head, rule)
    run = engine.start(lm, many, TIMBRE[:1].expand(rows, -1), Sampling(), built, torch.arange(rows))
    got: list[list[list[int]]] = [[] for _ in range(rows)]
    while any(len(row) < 2 for row in got):
        made = run.advance()
        assert made is not None
        for row, new in zip(got, made.new, strict=True):
            row += new
    counts = torch.bincount(torch.tensor([number[tuple(map(tuple, row[:2]))] for row in got]), minlength=len(pairs))
    assert chi_square(counts, law) < 2.2 * len(pairs)
    assert chi_square(counts.roll(1), law) > 3.5 * len(pairs)
    if head is not None:
        assert run.statistics.kept[0] > 50


def test_a_rule_that_needs_text_refuses_speech() -> None:
    lm, make = model("aligned")
    for rule in (plugins.build("decoding", "lookup"), rule_for(lm, "medusa", "cascade")):
        with pytest.raises(ValueError, match="drafts text"):
            engine.start(lm, make(TEXTS[:1]), TIMBRE[:1], Sampling(), rule)
    with pytest.raises(ValueError, match="drafts text"):
        engine.start(lm, make(TEXTS[:1]), TIMBRE[:1], Sampling(), rule_for(lm, "dspark", "chain"))
    lossy = rule_for(lm, "medusa", "chain", acceptance="typical")
    with pytest.raises(ValueError, match="'typical' is for text"):
        engine.start(lm, make(TEXTS[:1]), TIMBRE[:1], Sampling(), lossy)
    with pytest.raises(ValueError, match="at most 16 codes"):
        Sampling(repeat_window=17)
    with pytest.raises(ValueError, match="64 bits"):
        Sampling(seed=2**63)


def test_a_guess_by_the_trunks_own_logits_is_its_draw_however_flat_they_are() -> None:
    """A thousand codes, all nearly as likely: noise lifts any of them."""
    rows = RowSampling([Sampling(temperature=0.8, seed=seed) for seed in range(50)])
    logits = 0.01 * torch.randn(50, 1000, generator=torch.Generator().manual_seed(0))
    place = torch.arange(50)
    ids, _ = noise.likeliest(logits, rows, place, 1, 1)
    assert torch.equal(ids[:, 0], noise.choose(logits, rows, place, 1))
