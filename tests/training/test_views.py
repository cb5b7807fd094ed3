"""Two views of an utterance: the terms that draw them together, and the share of codes that stay."""

from __future__ import annotations

import math

import pytest
import torch

from speech_mtp.codecs.decoupled import Decoupled, scaled
from speech_mtp.nn.fsq import FSQ
from speech_mtp.training.views import Change, Views, equal_codes, perturbed_mel, view_terms

DEVICE = torch.device("cpu")


def raw(fsq: FSQ, place: torch.Tensor) -> torch.Tensor:
    """What lies at ``place`` (grid steps) before the tanh."""
    top = torch.tensor(fsq.levels) - 1
    return torch.atanh(place / top * 2 - 1)


def test_the_distance_is_counted_in_grid_steps_of_the_valid_frames() -> None:
    fsq = FSQ((4, 6))
    first = torch.tensor([[[1.0, 2.0], [1.0, 2.0], [2.0, 4.0]]])
    second = torch.tensor([[[1.0, 2.5], [1.5, 3.0], [0.5, 0.5]]])
    mask = torch.tensor([1.0, 1.0, 0.0])[None, :, None]
    terms = view_terms(fsq, raw(fsq, first), raw(fsq, second), mask)
    assert float(terms["consistency"]) == pytest.approx((0 + 0.5 + 0.5 + 1) / 4, abs=1e-5)


def test_codes_that_agree_cost_nothing_and_a_boundary_costs_a_bit() -> None:
    fsq = FSQ((4, 4))
    middle = torch.tensor([[[1.0, 2.0]]])
    mask = torch.ones(1, 1, 1)

    def cost(other: float) -> float:
        place = torch.tensor([[[other, 2.0]]])
        return float(view_terms(fsq, raw(fsq, middle), raw(fsq, place), mask)["codes"])

    assert cost(1.0) < 0.02
    assert cost(1.0) < cost(1.3) < cost(1.49) < cost(1.6) < cost(1.9)


def test_both_terms_draw_the_views_together() -> None:
    fsq = FSQ((4, 4, 4))
    torch.manual_seed(0)
    first, second = torch.randn(1, 50, 3), torch.randn(1, 50, 3)
    mask = torch.ones(1, 50, 1)
    for name in ("consistency", "codes"):
        moved = first.clone().requires_grad_()
        loss = view_terms(fsq, moved, second, mask)[name]
        (gradient,) = torch.autograd.grad(loss, moved)
        nearer = view_terms(fsq, first - 20 * gradient, second, mask)
        assert float(nearer[name]) < float(loss) - 1e-3


def test_levels_used_alike_cost_nothing_and_one_level_the_log_of_all() -> None:
    fsq = FSQ((8, 4))
    mask = torch.ones(1, 8, 1)
    all_used = torch.stack([torch.arange(8.0), torch.arange(8.0) % 4], -1)[None]
    assert float(fsq.unevenness(all_used, mask)) == pytest.approx(0, abs=0.01)
    one = torch.tensor([3.0, 1.0]).expand(1, 8, 2)
    soft = 2 * math.exp(-1 / 0.15) * (1 + 1 / 0.15)  # what the soft rounding gives the neighbours
    assert float(fsq.unevenness(one, mask)) == pytest.approx((math.log(8) + math.log(4)) / 2 - soft, abs=2e-3)
    some = torch.cat([all_used, one], 1)
    valid = torch.cat([mask, 0 * mask], 1)
    assert float(fsq.unevenness(some, valid)) == pytest.approx(float(fsq.unevenness(all_used, mask)))


def test_uneven_levels_are_spread_by_their_gradient() -> None:
    fsq = FSQ((8, 4))
    torch.manual_seed(0)
    z, mask = (0.3 * torch.randn(2, 40, 2)).requires_grad_(), torch.ones(2, 40, 1)
    before = fsq.unevenness(fsq.place(z), mask)
    (gradient,) = torch.autograd.grad(before, z)
    assert gradient.isfinite().all()
    after = fsq.unevenness(fsq.place(z - 20 * gradient), mask)
    assert float(after) < float(before) - 1e-2


def test_a_view_without_changes_is_what_the_encoder_hears() -> None:
    codec = Decoupled.tiny()
    torch.manual_seed(0)
    wave, lengths = 0.1 * torch.randn(2, 9_600), torch.tensor([9_600, 9_600])
    same = perturbed_mel(codec, wave, lengths, torch.zeros(2, 40), Change.fixed(2, DEVICE))
    torch.testing.assert_close(same, scaled(codec.mel(wave)), atol=2e-2, rtol=0)
    louder = perturbed_mel(codec, wave, lengths, torch.zeros(2, 40), Change.fixed(2, DEVICE, snr=0.0))
    assert float((louder - same).mean()) > 0.05


def test_random_changes_stay_within_their_bounds() -> None:
    torch.manual_seed(0)
    change = Change.random(Views(pitch=0.5, formants=0.2, noise=0.5, room=0.0), 2_000, DEVICE)
    assert 0.66 < float(change.pitch.min()) < 0.7 < 1.45 < float(change.pitch.max()) < 1.51
    assert 0.83 < float(change.formants.min()) < 0.85 < 1.18 < float(change.formants.max()) < 1.21
    noisy = change.snr_db[change.snr_db.isfinite()]
    assert len(noisy) == pytest.approx(1_000, abs=100)
    assert 10 <= float(noisy.min()) < 11 < 29 < float(noisy.max()) <= 30
    assert not change.direct_db.isfinite().any()


def test_codes_stay_where_the_encoder_is_deaf_and_padding_does_not_count() -> None:
    codec = Decoupled.tiny()
    torch.manual_seed(0)
    wave, lengths = 0.1 * torch.randn(2, 48_000), torch.tensor([48_000, 9_600])
    shares = equal_codes(codec, wave, lengths, torch.full((2, 200), 120.0))
    assert shares.keys() == {"equal_pitch", "equal_formants", "equal_both", "equal_noise"}
    with torch.no_grad():
        codec.content.leave.weight.zero_()
    assert set(equal_codes(codec, wave, lengths, torch.full((2, 200), 120.0)).values()) == {1.0}
