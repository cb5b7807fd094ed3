"""The one loop: rows do not see each other, noise is a function of its seed, the cache changes nothing, guards work."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from speech_mtp.decoding import engine, sampling
from speech_mtp.decoding.laws import Guard
from speech_mtp.decoding.sampling import adjust, choose, uniform
from speech_mtp.lm.speech_lm import SpeechLM
from speech_mtp.lm.units import UnitMaker
from speech_mtp.types import RowSampling, Sampling, TextUnits
from tests.lm.tiny import Letters, tiny_backbone
from tests.replay import greedy_tokens, shortfall
from tests.tiny import tiny_lm

MAKER = UnitMaker(tiny_backbone(), Letters())
TEXTS = ["the quick brown fox jumps over the lazy dog.", "hello.", "good morning, it is good"]
LM = tiny_lm()
TIMBRE = torch.randn(3, 8, generator=torch.Generator().manual_seed(3))


def decode(lm: SpeechLM, units: TextUnits, timbre: Tensor, sampling: Sampling, seeds: list[int]) -> list[Tensor]:
    """``[C, T_b]`` of every row."""
    run = engine.start(lm, units, timbre, sampling, seeds=torch.tensor(seeds))
    rows: list[list[Tensor]] = [[] for _ in seeds]
    while (made := run.advance()) is not None:
        for b, length in enumerate(made.lengths.tolist()):
            if length:
                rows[b].append(run.rows.last[b].clone())
    assert all(finish and finish.reason == "stop" for finish in run.finish)
    return [torch.stack(row, 1) for row in rows]


@pytest.mark.parametrize("layout", [{"name": "aligned"}])
@pytest.mark.parametrize("output", ["linear", "mlp", "depth", "known"])
def test_a_row_alone_is_the_row_in_a_batch(layout: dict[str, object], output: str) -> None:
    lm = tiny_lm(output=output, layout=layout)
    together = decode(lm, MAKER.make(TEXTS), TIMBRE, Sampling(), [1, 2, 3])
    assert len({row.shape[1] for row in together}) > 1, "rows must end at different times"
    for b, text in enumerate(TEXTS):
        (alone,) = decode(lm, MAKER.make([text]), TIMBRE[b : b + 1], Sampling(), [b + 1])
        assert torch.equal(alone, together[b])


def test_prefix_rows_end_by_their_control_channel_alone_and_together() -> None:
    lm = tiny_lm(layout={"name": "prefix"})
    together = decode(lm, MAKER.make(TEXTS), TIMBRE, Sampling(), [1, 2, 4])
    for b, text in enumerate(TEXTS):
        (alone,) = decode(lm, MAKER.make([text]), TIMBRE[b : b + 1], Sampling(), [[1, 2, 4][b]])
        assert torch.equal(alone, together[b])
        assert alone[0].tolist() == [0] * (alone.shape[1] - 1) + [1]


def test_the_seed_is_the_only_source_of_chance() -> None:
    units = MAKER.make([TEXTS[0]] * 3)
    first, same, other = decode(LM, units, TIMBRE[:1].expand(3, -1), Sampling(), [7, 7, 8])
    assert torch.equal(first, same)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_greedy_decoding_ignores_the_seed() -> None:
    units = MAKER.make([TEXTS[0]] * 2)
    first, other = decode(LM, units, TIMBRE[:1].expand(2, -1), Sampling(temperature=0), [7, 8])
    assert torch.equal(first, other)


@pytest.mark.parametrize("layout", ["aligned", "prefix"])
@pytest.mark.parametrize("fusion", ["mean", "concat"])
def test_the_cache_changes_nothing(layout: str, fusion: str) -> None:
    lm = tiny_lm(layout={"name": layout}, fusion=fusion)
    for b, text in enumerate(TEXTS):
        units = MAKER.make([text])
        tokens = greedy_tokens(lm, units, TIMBRE[b : b + 1], max_groups=100)  # more than the cache first has room for
        assert shortfall(lm, units, TIMBRE[b : b + 1], tokens).max() < 1e-5
        wrong = tokens.clone()
        wrong[-1, 1] = (wrong[-1, 1] + 1) % 1000
        assert shortfall(lm, units, TIMBRE[b : b + 1], wrong).max() > 1e-4


def test_the_pointer_is_held_inside_the_text() -> None:
    lm = tiny_lm(layout={"name": "aligned", "max_stall": 2})
    for seed in range(20):
        units = MAKER.make([TEXTS[seed % 3]])
        run = engine.start(lm, units, TIMBRE[:1], Sampling(temperature=3.0, seed=seed))
        before, still = 0, 0
        while run.advance() is not None:
            pointer = int(run.rows.place.pointer[0])
            still = still + 1 if pointer == before else 0
            assert before <= pointer <= int(units.lengths[0])
            assert still <= 2
            before = pointer
        assert before == int(units.lengths[0])


def stuck_lm(channel: int, token: int) -> SpeechLM:
    """Draws ``token`` on ``channel`` with certainty."""
    lm = tiny_lm(layout={"name": "aligned", "max_stall": 10_000}, output="linear")
    with torch.no_grad():
        head = lm.output.heads[channel]
        head.weight.zero_()
        head.bias.zero_()
        head.bias[token] = 60.0
    return lm


@pytest.mark.parametrize(("frame_rate_hz", "frames"), [(25.0, 6), (75.0, 14)])
def test_too_long_is_told_as_length(frame_rate_hz: float, frames: int) -> None:
    guard = Guard(unit_s=2 / 25, spare_s=4 / 25)
    lm = stuck_lm(0, 0)
    lm.config = dataclasses.replace(lm.config, frame_rate_hz=frame_rate_hz)
    run = engine.start(lm, MAKER.make(["hello."]), TIMBRE[:1], Sampling(), guard=guard)
    while run.advance() is not None:
        pass
    assert run.finish[0] is not None
    assert run.finish[0].reason == "length"
    assert 2 * run.steps == frames  # the first whole group over the limit: the pointer stands on the first unit


def test_one_code_for_ever_is_told_as_runaway_and_the_repeat_guard_breaks_it() -> None:
    lm = stuck_lm(0, 0)
    with torch.no_grad():
        for channel in (1, 3):
            lm.output.heads[channel].weight.zero_()
            lm.output.heads[channel].bias.zero_()
            lm.output.heads[channel].bias[17] = 20.0
    units = MAKER.make([TEXTS[0]])
    guard = Guard(max_repeat_s=9 / 25)
    run = engine.start(lm, units, TIMBRE[:1], Sampling(), guard=guard)
    while run.advance() is not None:
        pass
    assert run.finish[0] is not None
    assert run.finish[0].reason == "runaway"
    assert run.steps == 5
    guarded = engine.start(lm, units, TIMBRE[:1], Sampling(repeat_window=4, repeat_penalty=30.0), guard=guard)
    while guarded.advance() is not None:
        pass
    assert guarded.finish[0] is not None
    assert guarded.finish[0].reason == "length"


def test_a_finished_row_stands_still_while_others_go_on() -> None:
    run = engine.start(LM, MAKER.make(TEXTS), TIMBRE, Sampling(seed=1))
    ended: dict[int, Tensor] = {}
    while run.advance() is not None:
        for b in ended:
            assert int(run.rows.cache.lengths[b]) == int(ended[b])
        for b, finish in enumerate(run.finish):
            if finish:
                ended.setdefault(b, run.rows.cache.lengths[b].clone())
    assert len(ended) >= 1
    assert run.rows.cache.lengths.tolist() == run.rows.place.position.tolist()


def test_a_copied_state_goes_its_own_way() -> None:
    run = engine.start(LM, MAKER.make(TEXTS[:1]), TIMBRE[:1], Sampling(seed=1))
    run.advance()
    fork = dataclasses.replace(run, rows=run.rows.clone(), finish=[None], status=list(run.status))
    while run.advance() is not None:
        pass
    last = run.rows.last.clone()
    assert fork.rows.version == 1
    while fork.advance() is not None:
        pass
    assert torch.equal(fork.rows.last, last)
    assert fork.rows.version == run.rows.version


# -- laws -------------------------------------------------------------------------------------------------------------
def chi_square(counts: Tensor, law: Tensor) -> float:
    """Pearson's statistic; cells with less than five expected are joined."""
    expected = law.double() * counts.sum()
    small = expected < 5
    observed = torch.cat([counts[~small], counts[small].sum()[None]]).double()
    expected = torch.cat([expected[~small], expected[small].sum()[None]])
    keep = expected > 0
    assert observed[~keep].sum() == 0, "a token outside the law was drawn"
    return float(((observed[keep] - expected[keep]) ** 2 / expected[keep]).sum())


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_the_engine_draws_from_the_softmax(channel: int) -> None:
    rows = 4000
    lm = tiny_lm(codebook_sizes=(12, 7), output="linear", scale=4.0)
    one = MAKER.make([TEXTS[0]])
    units = TextUnits(**{k: v.expand(rows, *v.shape[1:]) for k, v in one.__dict__.items() if v is not None})
    run = engine.start(lm, units, TIMBRE[:1].expand(rows, -1), Sampling(), seeds=torch.arange(rows))
    with torch.inference_mode():
        hidden = lm.verify(run.rows, run.rule.propose(run.rows, run.law)).top[:1]
        law = lm.output.score(hidden, run.rows.last[:1, None])[channel][0, 0].softmax(-1)
    assert law.max() < 0.9
    run.advance()
    counts = torch.bincount(run.rows.last[:, channel], minlength=len(law))
    assert chi_square(counts, law) < 40  # 11 degrees of freedom at most: exceeded once in twenty thousand
    assert chi_square(counts.roll(1), law) > 40


def test_draws_of_two_channels_and_of_two_positions_are_independent() -> None:
    seeds = torch.arange(4000)
    flat = torch.zeros(4000, 4)
    settings = [Sampling(seed=seed) for seed in range(4001)]
    rows, later = RowSampling(settings[:-1]), RowSampling(settings[1:])
    first = choose(flat, rows, torch.zeros_like(seeds), 0)
    other_purpose = uniform(seeds, torch.zeros_like(seeds), 0, 1, torch.arange(4)).argmax(-1)
    for other in (
        choose(flat, rows, torch.zeros_like(seeds), 1),
        choose(flat, rows, torch.ones_like(seeds), 0),
        choose(flat, later, torch.zeros_like(seeds), 0),
        other_purpose,
    ):
        joint = torch.bincount(4 * first + other, minlength=16)
        assert chi_square(joint, torch.full((16,), 1 / 16)) < 50


def test_top_k_and_top_p_cut_the_tail_and_temperature_flattens() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()

    def inside(**settings: float) -> list[bool]:
        return adjust(logits, RowSampling([Sampling(**settings)])).isfinite()[0].tolist()  # type: ignore[arg-type]

    assert inside(top_k=2) == [True, True, False, False]
    assert inside(top_p=0.7) == [True, True, False, False]
    assert inside(top_p=0.05) == [True, False, False, False]
    hot = adjust(logits, RowSampling([Sampling(temperature=2.0)])).softmax(-1)
    torch.testing.assert_close(hot[0, 0] / hot[0, 3], torch.tensor(10**0.5))


def test_every_row_has_settings_of_its_own() -> None:
    logits = torch.randn(6, 2000, generator=torch.Generator().manual_seed(1)) * 3
    settings = [
        Sampling(temperature=0),
        Sampling(top_k=3, seed=4),
        Sampling(top_p=0.4, seed=5),
        Sampling(temperature=0.3, top_k=50, top_p=0.9, seed=6),
        Sampling(seed=7),
        Sampling(temperature=3.0, top_p=0.999, seed=8),
    ]
    position = torch.arange(6)
    together = choose(logits, RowSampling(settings), position, 0)
    for b, one in enumerate(settings):
        alone = choose(logits[b : b + 1], RowSampling([one]), position[b : b + 1], 0)
        assert torch.equal(alone, together[b : b + 1])
    assert together[0] == logits[0].argmax()


def test_few_candidates_give_the_token_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = (torch.randn(400, 2000, generator=torch.Generator().manual_seed(2)) * 4).bfloat16().float()
    rows = RowSampling([Sampling(top_p=0.8, seed=seed) for seed in range(400)])
    few = choose(logits, rows, torch.zeros(400, dtype=torch.long), 0)
    monkeypatch.setattr(sampling, "CANDIDATES", 0)
    assert torch.equal(few, choose(logits, rows, torch.zeros(400, dtype=torch.long), 0))
