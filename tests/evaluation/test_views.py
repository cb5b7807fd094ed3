"""Views keep the timing and change what they say they change, and the agreement of codes tells planted codecs apart."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

pytest.importorskip("librosa", reason="needs the eval extra")

from speech_mtp.codecs.decoupled import Decoupled
from speech_mtp.evaluation.codec_report import Sample
from speech_mtp.evaluation.f0 import coarse_log_f0
from speech_mtp.evaluation.view_agreement import DECODED, REVOICED, view_agreement
from speech_mtp.evaluation.views import VIEWS, add_noise, add_room, shift_formants, shift_pitch
from speech_mtp.types import CodecSpec, Codes

RATE = 24_000


def vowel(hertz: float = 200.0, formant: float = 1000.0, seconds: float = 0.5) -> Tensor:
    """Harmonics of ``hertz`` below one formant, with silence before and after."""
    time = torch.arange(int(seconds * RATE)) / RATE
    tones = [torch.sin(2 * math.pi * k * hertz * time) / (1 + ((k * hertz - formant) / 200) ** 2) for k in range(1, 40)]
    silence = torch.zeros(RATE // 10)
    return torch.cat([silence, 0.3 * torch.stack(tones).sum(0), silence])


def loudest(wave: Tensor) -> float:
    """Hertz of the strongest part of the spectrum, smoothed over 400 Hz."""
    power = torch.fft.rfft(wave).abs().square()
    bins = round(400 * len(wave) / RATE)
    smooth = torch.nn.functional.avg_pool1d(power[None, None], bins, 1, bins // 2)[0, 0]
    return float(smooth.argmax()) * RATE / len(wave)


def hertz(wave: Tensor) -> float:
    return float(coarse_log_f0(wave, RATE).nanmedian().exp())


@pytest.mark.parametrize("name", list(VIEWS))
def test_a_view_has_the_length_of_the_recording_and_is_another_sound(name: str) -> None:
    wave = vowel()
    changed = VIEWS[name](wave, RATE, 0)
    assert changed.shape == wave.shape
    assert float((changed - wave).norm() / wave.norm()) > 0.05


def test_factor_one_changes_nothing() -> None:
    wave = vowel() + 0.01 * torch.randn(len(vowel()), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(shift_pitch(wave, RATE, 1.0), wave, atol=1e-5, rtol=0)
    torch.testing.assert_close(shift_formants(wave, RATE, 1.0), wave, atol=1e-5, rtol=0)


def test_pitch_moves_without_formants_and_formants_without_pitch() -> None:
    wave = vowel()
    lower = shift_pitch(wave, RATE, 0.72)
    assert hertz(lower) / hertz(wave) == pytest.approx(0.72, rel=0.02)
    assert loudest(lower) == pytest.approx(1000, abs=80)
    longer = shift_formants(wave, RATE, 0.8)
    assert hertz(longer) / hertz(wave) == pytest.approx(1, rel=0.02)
    assert loudest(longer) == pytest.approx(800, abs=80)


def test_silence_stays_where_it_was() -> None:
    changed = shift_pitch(vowel(), RATE, 0.72)
    assert float(changed[: RATE // 20].abs().max()) < 1e-3
    assert float(changed[-RATE // 20 :].abs().max()) < 1e-3


def test_noise_and_room_are_as_loud_as_told() -> None:
    wave = vowel()
    noise = add_noise(wave, 20.0, 0) - wave
    assert 20 * math.log10(wave.norm() / noise.norm()) == pytest.approx(20, abs=0.3)
    click = torch.zeros(RATE)
    click[100] = 1.0
    heard = add_room(click, RATE, 0.3, 5.0, 0)
    assert heard.argmax() == 100
    tail = heard[101:].square().sum()
    assert 10 * math.log10(heard[100] ** 2 / tail) == pytest.approx(5, abs=0.1)
    assert heard[100 + int(0.31 * RATE) :].abs().max() < 1e-5


class Planted(Decoupled):
    """Content is the loudest half of the spectrum (deaf to pitch); prosody is the pitch itself, or noise."""

    def __init__(self) -> None:
        super().__init__(Decoupled.tiny().config)
        self.spec = CodecSpec(RATE, 25.0, {"content": slice(0, 1), "prosody": slice(1, 2)}, (1000, 200), 8)

    def encode(self, wave: Tensor, lengths: Tensor | None = None, timbre: Tensor | None = None) -> Codes:
        frames = wave[0, 0].view(-1, 960)
        content = torch.arange(len(frames)) * 7 % 1000
        period = round(hertz(wave[0, 0]))
        prosody = (torch.arange(len(frames)) * 31 + period) % 200
        return Codes(torch.stack([content, prosody])[None], torch.tensor([len(frames)]), torch.zeros(1, 8))

    def decode(self, codes: Codes) -> Tensor:
        return torch.zeros(1, 1, codes.frames.shape[2] * 960) + vowel()[4800]


def test_a_codec_that_ignores_pitch_keeps_all_and_one_that_copies_it_falls_to_chance() -> None:
    samples = [Sample("a", "x", vowel()[:15360]), Sample("b", "x", vowel(240)[:15360])]
    views = {name: VIEWS[name] for name in ("pitch x 0.72", "formants 13 %")}
    codec = Planted().eval()
    codec.decode = lambda codes: samples[0].wave[None, None]  # type: ignore[method-assign]
    found = view_agreement(codec, samples, views=views)
    assert found["pitch x 0.72"]["content"][0]["value"] == 1.0
    assert found["pitch x 0.72"]["content"][0]["interval"] == [1.0, 1.0]
    assert found["pitch x 0.72"]["prosody"][0]["value"] == 0.0
    assert found["formants 13 %"]["prosody"][0]["value"] == 1.0
    assert found["pitch x 0.72"]["content"][0]["chance"] < 0.4
    assert found[DECODED]["content"][0]["value"] == found[REVOICED]["content"][0]["value"] == 1.0
    assert found[DECODED]["prosody"][0]["value"] == 0.5  # the second recording decodes to the first one's pitch
