"""Quantiser, excitation, minimum phase and causal layers, each against a plain reference."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_mtp.nn.conv import CausalConv, Film, depthwise
from speech_mtp.nn.critics import SpectrogramCritics, critic_loss, generator_loss
from speech_mtp.nn.fsq import FSQ
from speech_mtp.nn.source import pulse_train
from speech_mtp.nn.source_filter import Pitch, SourceFilterDecoder
from speech_mtp.nn.spectral import LogMel, LowSpectrum, SpectralLoss, centred, magnitudes, minimum_phase
from speech_mtp.nn.transformer import rotate


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [True, False])
def test_depthwise_is_the_convolution_of_torch(dtype: torch.dtype, bias: bool) -> None:
    conv = torch.nn.Conv1d(6, 6, 5, groups=6, bias=bias, dtype=dtype)
    x = torch.randn(2, 11, 6, dtype=dtype)
    with torch.no_grad():
        expected = conv(x.transpose(1, 2)).transpose(1, 2)
        assert torch.allclose(depthwise(x, conv.weight, conv.bias), expected, atol=1e-6)


@pytest.mark.parametrize(("dim_out", "groups"), [(6, 6), (12, 6), (6, 1)])
def test_a_causal_convolution_learns_and_hears_the_same(dim_out: int, groups: int) -> None:
    layer = CausalConv(6, dim_out, 3, groups=groups)
    x, lengths = torch.randn(1, 9, 6), torch.tensor([9])
    y, _ = layer(x, layer.fresh(1, x.device), lengths)
    y.square().sum().backward()
    assert layer.conv.weight.grad is not None
    with torch.no_grad():
        assert torch.allclose(layer(x, layer.fresh(1, x.device), lengths)[0], y, atol=1e-6)


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


def test_rotation_multiplies_pairs_by_a_phase() -> None:
    x, index = torch.randn(2, 1, 3, 8), torch.tensor([[0, 1, 5], [7, 8, 9]])
    angle = index[:, None, :, None] * 50.0 ** (-torch.arange(4) / 4)
    expected = torch.complex(x[..., :4], x[..., 4:]) * torch.exp(1j * angle)
    torch.testing.assert_close(rotate(x, index, 50.0), torch.cat([expected.real, expected.imag], -1))


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


def test_a_condition_gives_gain_and_bias() -> None:
    torch.manual_seed(0)
    film, x, condition = Film(3, 2), torch.randn(2, 5, 3), torch.randn(2, 2)
    plain = torch.nn.functional.layer_norm(x, (3,))
    assert torch.equal(film(x, condition), plain)
    torch.nn.init.normal_(film.affine.weight)
    gain, bias = film.affine(condition)[:, None].split(3, -1)
    torch.testing.assert_close(film(x, condition), plain * gain + bias)


def test_log_mel_has_one_column_per_hop() -> None:
    mel = LogMel(24_000, 1024, 240, 80)
    for samples in (1, 239, 240, 241, 5000):
        assert mel(torch.zeros(2, samples)).shape == (2, -(-samples // 240), 80)


@pytest.mark.parametrize("features", [LogMel(24_000, 1024, 240, 80), LowSpectrum(2048, 240, 85)])
def test_a_column_is_centred_on_its_hop(features: LogMel | LowSpectrum) -> None:
    wave = torch.zeros(1, 7_200)
    wave[0, 12 * 240 + 120] = 1.0
    loudness = features(wave)[0].exp().sum(-1)
    assert int(loudness.argmax()) == 12
    torch.testing.assert_close(loudness[11], loudness[13], rtol=1e-2, atol=0.0)


def test_what_is_voiced_is_pulses_at_the_given_pitch_and_the_rest_noise() -> None:
    """With a flat envelope for one of the two parts and none for the other."""
    torch.manual_seed(0)
    decoder, frames = SourceFilterDecoder(4, 3, 8, dims=(16, 16), blocks=(1, 1)), 16

    def power(part: str, voiced: float, hertz: float = 100.0) -> tuple[float, torch.Tensor]:
        with torch.no_grad():
            decoder.envelopes.weight.zero_()
            half = decoder.envelopes.bias.view(2, -1)
            half[0].fill_(0.0 if part == "harmonic" else -30.0)
            half[1].fill_(0.0 if part == "noisy" else -30.0)
            given = Pitch(torch.full((1, 4 * frames), math.log(hertz)), torch.full((1, 4 * frames), voiced))
            state = decoder.open(1, torch.device("cpu"))
            content, prosody = torch.zeros(1, frames, 4), torch.zeros(1, frames, 3)
            wave = decoder(state, content, prosody, torch.tensor([frames]), given)[0][0, 4_800:]
        return float(wave.square().mean()), wave

    assert power("harmonic", 1.0)[0] > 0.1
    assert power("harmonic", 0.0)[0] < 1e-9
    assert power("noisy", 0.0)[0] > 0.1
    wave = power("harmonic", 1.0, 200.0)[1]
    torch.testing.assert_close(wave[120:], wave[:-120], atol=1e-2, rtol=0.0)


def test_magnitudes_and_their_gradient_are_those_of_stft() -> None:
    torch.manual_seed(0)
    window = torch.hann_window(64, dtype=torch.float64)
    waves = [torch.randn(2, 300, dtype=torch.float64).requires_grad_()]
    waves.append(waves[0].detach().clone().requires_grad_())
    theirs = torch.stft(waves[0], 64, 24, window=window, center=False, return_complex=True).abs().transpose(1, 2)
    ours = magnitudes(waves[1], window, 24)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn_like(ours)
    for found in (theirs, ours):
        (found.square() * weights).sum().backward()
    torch.testing.assert_close(waves[1].grad, waves[0].grad)


@pytest.mark.parametrize("scale", [0.0, 1e-24, 1e-12])
def test_next_to_silence_gradients_stay_small(scale: float) -> None:
    torch.manual_seed(0)
    for wave in (torch.randn(2, 4800), torch.ones(2, 4800)):
        quiet = (scale * wave).requires_grad_()
        (1e4 * magnitudes(quiet, torch.hann_window(64), 24)).sum().backward()
        assert quiet.grad is not None
        assert quiet.grad.abs().max() < 1e7
        quiet.grad = None
        for features in (LogMel(24_000, 1024, 240, 80), LowSpectrum(2048, 240, 85)):
            features(quiet).sum().backward()
        assert not quiet.grad.any()


@pytest.mark.parametrize("hop", [240, 256])
def test_log_mel_is_that_of_torchaudio(hop: int) -> None:
    torch.manual_seed(0)
    mel, wave = LogMel(24_000, 1024, hop, 80), torch.randn(2, 5000)
    expected = mel.mel(centred(wave, 1024, hop)).clamp(min=1e-5).log().transpose(1, 2)
    torch.testing.assert_close(mel(wave), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mel.of_magnitude(mel.spectrum(wave).abs()), expected, atol=1e-5, rtol=1e-5)


def test_spectral_loss_is_zero_only_for_equal_waves() -> None:
    wave = torch.randn(2, 6000)
    loss = SpectralLoss()
    assert [float(x) for x in loss(wave, wave)] == [0.0, 0.0]
    assert all(float(x) > 0.1 for x in loss(wave * 0.5, wave))


def test_critics_want_ones_for_real_and_noughts_for_fake_and_the_generator_ones() -> None:
    def scored(wave: torch.Tensor, only: int | None) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
        return [(wave, [2 * wave])]  # the wave is its own score

    noughts, ones = torch.zeros(2, 8), torch.ones(2, 8)
    assert float(critic_loss(scored, noughts, ones)) == 0.0  # type: ignore[arg-type]
    assert float(critic_loss(scored, ones, noughts)) == 2.0  # type: ignore[arg-type]
    assert [float(x) for x in generator_loss(scored, ones, ones)] == [0.0, 0.0]  # type: ignore[arg-type]
    assert [float(x) for x in generator_loss(scored, noughts, ones)] == [1.0, 1.0]  # type: ignore[arg-type]


def test_critics_hear_what_is_quiet() -> None:
    """Noise 50 dB under a tone, of low frequencies in one wave and of high ones in the other."""
    torch.manual_seed(0)
    critics = SpectrogramCritics((256,), 8)
    optimizer = torch.optim.Adam(critics.parameters(), 3e-3)
    tone = torch.sin(torch.arange(2000) * 0.1)
    for _ in range(120):
        noise = torch.randn(2, 2, 2001) * 1.6e-3
        low, high = tone + noise[0, :, 1:] + noise[0, :, :-1], tone + noise[1, :, 1:] - noise[1, :, :-1]
        loss = critic_loss(critics, low, high)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.25  # 0.5: no difference heard


@pytest.mark.parametrize("length", [1, 255, 257, 1000])
def test_critics_have_a_gradient_for_any_length_and_near_silence(length: int) -> None:
    torch.manual_seed(0)
    critics, real = SpectrogramCritics(width=4), torch.randn(1, length)
    for scale in (0.0, 1e-12, 1e-6, 1.0):
        fake = (torch.randn(1, length) * scale).requires_grad_()
        sum(generator_loss(critics, fake, real)).backward()
        assert fake.grad is not None
        assert bool(fake.grad.isfinite().all())
        assert scale == 0.0 or float(fake.grad.abs().sum()) > 0


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
