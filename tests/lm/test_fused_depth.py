"""Groups drawn in one call of the kernels: what channel by channel draws, whatever rows are drawn beside."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from speech_mtp.decoding import sampling as noise
from speech_mtp.lm.fused_depth import FusedDepth, GroupDraws
from speech_mtp.lm.speech_lm import SpeechLM
from speech_mtp.nn import blocks
from speech_mtp.types import RowSampling, Sampling
from tests.nn.test_blocks import needs_kernels
from tests.tiny import tiny_lm

SIZES = {"dim": 64, "num_layers": 1, "heads": 2, "hidden": 96}
ROWS = 60
KINDS = (0, 1, 2, 1, 2)


def prepared(**more: Any) -> SpeechLM:
    return tiny_lm(**SIZES, scale=6.0, **more).prepare()


def hidden(rows: int = ROWS) -> torch.Tensor:
    return torch.randn(rows, SIZES["dim"], generator=torch.Generator().manual_seed(3))


def draws(lm: SpeechLM, settings: list[Sampling], rows: int = ROWS, lowered: float = 0.0) -> GroupDraws:
    """All control tokens but the first may be drawn; ``settings`` by kind of channel."""
    allowed = torch.ones(rows, lm.layout.channel_sizes[0], dtype=torch.bool)
    allowed[:, 0] = False
    by_kind = [RowSampling([replace(one, seed=seed) for seed in range(rows)]) for one in settings]
    stuck, guarded = torch.arange(rows) % 7, [kind == 1 for kind in KINDS]
    return GroupDraws(
        allowed, stuck, torch.full((rows,), lowered), guarded, by_kind, KINDS, torch.arange(rows), noise.TARGET
    )


def one_by_one(lm: SpeechLM, x: torch.Tensor, given: GroupDraws) -> torch.Tensor:
    """Channel by channel, with torch between the products."""

    def pick(channel: int, logits: torch.Tensor) -> torch.Tensor:
        if channel == 0:
            logits = logits.masked_fill(~given.allowed, float("-inf"))
        if given.guarded[channel]:
            logits = logits.scatter_add(1, given.stuck[:, None], -given.lowered[:, None])
        return noise.choose(logits, given.settings[given.kinds[channel]], given.position, channel)

    with torch.inference_mode():
        return lm.output.sample(x, pick)


def fused(lm: SpeechLM) -> FusedDepth:
    assert lm.draws_groups is not None
    return lm.draws_groups


GREEDY, WARM = Sampling(temperature=0.0), Sampling(temperature=0.9, top_p=0.95)
SETTINGS = {
    "greedy": [GREEDY] * 3,
    "warm": [WARM] * 3,
    "of their own": [GREEDY, WARM, Sampling(temperature=1.2, top_k=9)],
}


@needs_kernels
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("lowered", [0.0, 3.0])
def test_the_tokens_are_those_of_channel_by_channel(settings: list[Sampling], lowered: float) -> None:
    """But for sums that the last bit decides: norms are rounded otherwise."""
    lm = prepared()
    given = draws(lm, settings, lowered=lowered)
    found, true = fused(lm)(hidden(), given), one_by_one(lm, hidden(), given)
    assert found.shape == (ROWS, 5)
    same = (found == true).all(1)
    assert int(same.sum()) >= ROWS - 3
    assert (found[:, 0] != 0).all()
    assert all(len(set(found[:, c].tolist())) > 5 for c in range(1, 5))


@needs_kernels
def test_what_is_stuck_is_drawn_no_more() -> None:
    lm = prepared()
    free, held = (fused(lm)(hidden(), draws(lm, SETTINGS["greedy"], lowered=by)) for by in (-1e4, 1e4))
    stuck = torch.arange(ROWS) % 7
    assert (free[:, [1, 3]] == stuck[:, None]).all()
    assert (held[:, [1, 3]] != stuck[:, None]).all()


@needs_kernels
@pytest.mark.parametrize("threads", [1, 3])
def test_a_row_is_the_same_alone_and_among_others(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lm, before = prepared(), torch.get_num_threads()
    monkeypatch.setattr(blocks, "_ALONE", 0)
    x, given = hidden(), draws(lm, SETTINGS["of their own"])
    try:
        torch.set_num_threads(threads)
        together = fused(lm)(x, given)
    finally:
        torch.set_num_threads(before)
    kept = x.clone()
    for row in range(0, ROWS, 7):
        one = torch.tensor([row])
        alone = replace(
            given,
            **{name: getattr(given, name)[one] for name in ("allowed", "stuck", "lowered", "position")},
            settings=[settings.select(one) for settings in given.settings],
        )
        assert torch.equal(fused(lm)(x[one], alone)[0], together[row])
    assert torch.equal(x, kept)  # what is given is not written over


@needs_kernels
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_states_that_are_no_numbers_draw_nothing_forbidden(settings: list[Sampling]) -> None:
    lm = prepared()
    found = fused(lm)(hidden() * torch.nan, draws(lm, settings))
    assert (found[:, 0] == 1).all()  # the first that is allowed


@needs_kernels
def test_no_rows_and_another_device() -> None:
    lm = prepared()
    assert fused(lm)(hidden(0), draws(lm, SETTINGS["warm"], 0)).shape == (0, 5)
    with pytest.raises(ValueError, match="not for states on meta"):
        fused(lm)(hidden().to("meta"), draws(lm, SETTINGS["warm"]))


def test_other_layers_draw_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    assert prepared(output="linear").draws_groups is None
    assert tiny_lm(num_layers=3).prepare().draws_groups is None  # of a width that has no blocks
    monkeypatch.setattr("speech_mtp.nn.blocks.is_native", lambda: False)
    assert prepared().draws_groups is None
