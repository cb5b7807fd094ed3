"""Quantiser, excitation, minimum phase and causal layers, each against a plain reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_mtp.nn.conv import CausalConv
from speech_mtp.nn.critics import SpectrogramCritics, critic_loss, generator_loss
from speech_mtp.nn.fsq import FSQ
from speech_mtp.nn.source import pulse_train
from speech_mtp.nn.spectral import LogMel, SpectralLoss, minimum_phase


@given(st.lists(st.integers(2, 9), min_size=1, max_size=4))
@settings(max_examples=20, deadline=None)
def test_fsq_codes_and_values_are_inverse(levels: list[int]) -> None:
    fsq = FSQ(tuple(levels))
    codes = torch.arange(fsq.size)
    values = fsq.values(codes)
    again, found = fsq(torch.atanh(values.clamp(-1 + 1e-6, 1 - 1e-6)))
    assert torch.equal(found, codes)
    assert torch.allclose(again, values, atol=1e-5)


def test_fsq_passes_the_gradient_and_refuses_one_level() -> None:
    z = torch.zeros(3, 2, requires_grad=True)
    FSQ((5, 4))(z)[0].sum().backward()
    assert z.grad is not None
    assert (z.grad > 0).all()
    with pytest.raises(ValueError, match="at least 2"):
        FSQ((5, 1))


def test_pulses_are_the_sum_of_their_harmonics() -> None:
    f0 = torch.full((1, 2400), 200.0)
    wave, cycles = pulse_train(f0, torch.zeros(1, dtype=torch.float64), 24_000)
    phase = 2 * math.pi * cycles[0]
    harmonics = 59
    reference = sum(torch.cos(h * phase) for h in range(1, harmonics + 1)) * math.sqrt(2 / harmonics)
    assert torch.allclose(wave[0].double(), reference, atol=2e-3)
    assert float(wave.square().mean()) == pytest.approx(1.0, rel=0.02)


def test_pulses_go_on_where_they_stopped() -> None:
    f0 = 100 + 50 * torch.rand(1, 1000)
    whole, _ = pulse_train(f0, torch.zeros(1, dtype=torch.float64), 24_000)
    first, cycles = pulse_train(f0[:, :333], torch.zeros(1, dtype=torch.float64), 24_000)
    second, _ = pulse_train(f0[:, 333:], cycles[:, -1], 24_000)
    assert torch.allclose(torch.cat([first, second], 1), whole, atol=1e-5)


def test_minimum_phase_filter_is_causal() -> None:
    """A one-pole filter is minimum phase, so its phase is recovered from its magnitude alone."""
    omega = torch.linspace(0, math.pi, 513)
    response = 1 / (1 - 0.8 * torch.exp(-1j * omega))
    phase = minimum_phase(response.abs().log())
    assert torch.allclose(phase[1:-1], response.angle()[1:-1], atol=1e-3)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
def test_causal_conv_rows_advance_by_different_lengths(lengths: list[int]) -> None:
    torch.manual_seed(0)
    layer = CausalConv(3, 4, 4)
    total = sum(lengths)
    x = torch.randn(1, total, 3)
    whole, _ = layer(x, layer.fresh(1, x.device), torch.tensor([total])) if total else (torch.zeros(1, 0, 4), None)
    cache, at, parts = layer.fresh(2, x.device), 0, []
    for n in lengths:
        piece = torch.zeros(2, 5, 3)
        piece[0, :n] = x[0, at : at + n]
        y, cache = layer(piece, cache, torch.tensor([n, 5]))
        parts.append(y[0, :n])
        at += n
    assert torch.allclose(torch.cat(parts), whole[0], atol=1e-6)


def test_log_mel_has_one_column_per_hop() -> None:
    mel = LogMel(24_000, 1024, 240, 80)
    for samples in (1, 239, 240, 241, 5000):
        assert mel(torch.zeros(2, samples)).shape == (2, -(-samples // 240), 80)


def test_spectral_loss_is_zero_only_for_equal_waves() -> None:
    wave = torch.randn(2, 6000)
    loss = SpectralLoss()
    assert [float(x) for x in loss(wave, wave)] == [0.0, 0.0]
    assert all(float(x) > 0.1 for x in loss(wave * 0.5, wave))


def test_critics_learn_to_tell_noise_from_a_tone() -> None:
    torch.manual_seed(0)
    critics = SpectrogramCritics((256,), 8)
    optimizer = torch.optim.Adam(critics.parameters(), 3e-3)
    tone = torch.sin(torch.arange(4000) * 0.1).expand(2, -1)
    first = None
    for _ in range(30):
        loss = critic_loss(critics, torch.randn(2, 4000) * 0.5, tone)
        first = first or float(loss.detach())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.5 * first
    fake = (torch.randn(2, 4000) * 0.5).requires_grad_()
    adversarial, features = generator_loss(critics, fake, tone)
    (adversarial + features).backward()
    assert fake.grad is not None
    assert fake.grad.abs().sum() > 0
