"""Perturbed speech: what was to move moves by its factor, the rest stays, and time is never touched."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from speech_mtp.nn import perturb

RATE, N_FFT, HOP = 24_000, 1024, 240


def hum(hertz: float, formant: float, seconds: float = 1.0) -> Tensor:
    """Harmonics of ``hertz`` under a spectral envelope with one peak at ``formant`` Hz, ``[1, S]``."""
    time = torch.arange(int(seconds * RATE)) / RATE
    partials = torch.arange(1, int(6_000 / hertz)) * hertz
    level = torch.exp(-0.5 * ((partials - formant) / 400).square()) + 0.02
    return (level[:, None] * torch.cos(2 * torch.pi * partials[:, None] * time)).sum(0)[None]


def spectrum(wave: Tensor) -> Tensor:
    window = torch.hann_window(N_FFT)
    return torch.stft(wave, N_FFT, HOP, window=window, center=False, return_complex=True).abs()


def spacing_hz(magnitude: Tensor) -> float:
    """The distance of the harmonics in the middle frame, from its cepstrum."""
    log = magnitude[0, :, magnitude.shape[2] // 2].log()
    cepstrum = torch.fft.irfft(log, N_FFT)[60 : N_FFT // 2]
    return RATE / (60 + float(cepstrum.argmax()))


def peak_hz(magnitude: Tensor) -> float:
    """The middle of the power of the middle frame."""
    power = magnitude[0, :, magnitude.shape[2] // 2].square()
    return float((power * torch.arange(len(power))).sum() / power.sum()) * RATE / N_FFT


def changed(wave: Tensor, pitch: float, formants: float) -> Tensor:
    return perturb.change_voice(spectrum(wave), torch.tensor([pitch]), torch.tensor([formants]), RATE)


@pytest.mark.parametrize("pitch", [0.72, 1.3])
def test_pitch_moves_alone(pitch: float) -> None:
    wave = hum(200, 1_500)
    after = changed(wave, pitch, 1.0)
    assert spacing_hz(after) == pytest.approx(200 * pitch, rel=0.06)
    assert peak_hz(after) == pytest.approx(peak_hz(spectrum(wave)), rel=0.06)


@pytest.mark.parametrize("formants", [0.85, 1.15])
def test_formants_move_alone(formants: float) -> None:
    wave = hum(150, 2_000)
    after = changed(wave, 1.0, formants)
    assert spacing_hz(after) == pytest.approx(150, rel=0.06)
    assert peak_hz(after) == pytest.approx(peak_hz(spectrum(wave)) * formants, rel=0.05)


def test_factors_of_one_change_nothing_and_each_row_has_its_own() -> None:
    waves = torch.cat([hum(200, 1_500), hum(200, 1_500)])
    before = spectrum(waves)
    after = perturb.change_voice(before, torch.tensor([1.0, 1.4]), torch.tensor([1.0, 1.0]), RATE)
    torch.testing.assert_close(after[0], before[0].clamp(min=perturb.FLOOR), rtol=1e-2, atol=1e-4)
    assert (after[1] - after[0]).abs().max() > 1
    assert after.shape == before.shape


def test_noise_has_the_ratio_that_was_asked_for() -> None:
    torch.manual_seed(0)
    wave = torch.randn(3, RATE)
    noise = perturb.coloured_noise(wave, torch.full((3,), RATE), torch.tensor([20.0, 0.0, torch.inf]))
    ratio = wave.square().mean(1) / noise.square().mean(1)
    torch.testing.assert_close(10 * ratio[:2].log10(), torch.tensor([20.0, 0.0]), atol=0.01, rtol=0)
    assert not noise[2].any()


def test_a_room_adds_echoes_after_the_sound_and_none_where_it_is_dry() -> None:
    torch.manual_seed(0)
    click = torch.zeros(2, RATE)
    click[:, 1_000] = 1
    wet = perturb.reverberate(click, torch.tensor([0.2, 0.2]), torch.tensor([6.0, torch.inf]), RATE)
    torch.testing.assert_close(wet[1], click[1], atol=1e-5, rtol=0)
    echoes = wet[0] - click[0]
    assert float(echoes[:1_000].abs().max()) < 1e-4
    assert 10 * float(echoes.square().sum().log10()) == pytest.approx(-6, abs=0.1)
    early, late = echoes[1_000:2_400].square().sum(), echoes[5_800:7_200].square().sum()
    assert 10 * float((early / late).log10()) == pytest.approx(60, abs=6)


def test_the_equaliser_is_smooth_and_has_its_deviation() -> None:
    torch.manual_seed(0)
    gain = 20 * perturb.random_gain(500, 513, torch.full((500,), 4.0)).log10()
    assert 2.5 < float(gain.std()) < 4.5
    assert float((gain[:, 1:] - gain[:, :-1])[:, 20:].abs().max()) < 2
    assert perturb.random_gain(1, 513, torch.zeros(1)).unique().tolist() == [1.0]
