"""A voice of a recording: what of it counts, and what makes none."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from speech_mtp.codecs.decoupled import Decoupled
from speech_mtp.voices.reference import LEVEL, MOST_S, UnusableRecordingError, reference_of, timbre_of

RATE = 24_000


def voice(seconds: float, level: float = 0.2, rate: int = RATE) -> Tensor:
    time = torch.arange(int(seconds * rate)) / rate
    tone = sum(torch.sin(2 * torch.pi * 140 * k * time) / k for k in range(1, 9))
    return torch.as_tensor(level * tone * (0.6 + 0.4 * torch.sin(2 * torch.pi * 4 * time)))


def speech_of(wave: Tensor) -> Tensor:
    return reference_of(wave, RATE, RATE).speech


def test_silence_and_level_make_no_difference() -> None:
    codec, plain = Decoupled.tiny(), voice(2.0)
    silence = 1e-4 * torch.randn(2 * RATE)
    with_pauses = torch.cat([silence, plain[:RATE], silence, plain[RATE:], silence])
    expected = timbre_of(codec, plain, RATE)
    assert expected.shape == (codec.spec.timbre_dim,)
    torch.testing.assert_close(timbre_of(codec, 0.3 * plain, RATE), expected)
    apart = timbre_of(codec, with_pauses, RATE) - expected
    unheeded = codec.encode(with_pauses[None, None]).timbre[0] - expected  # type: ignore[index]
    assert float(apart.norm()) < 0.3 * float(unheeded.norm())


def test_the_speech_of_a_recording() -> None:
    silence = torch.zeros(RATE)
    speech = speech_of(torch.cat([silence, voice(3.0), silence, voice(2.0), silence]))
    assert 5.0 <= len(speech) / RATE <= 5.5  # with a tenth of a second around each part
    assert float(speech.square().mean().sqrt()) == pytest.approx(LEVEL, rel=0.1)
    assert len(speech_of(voice(30.0))) == MOST_S * RATE


def test_other_rates_are_the_same_voice() -> None:
    codec = Decoupled.tiny()
    torch.testing.assert_close(
        timbre_of(codec, voice(2.0, rate=44_100), 44_100), timbre_of(codec, voice(2.0), RATE), atol=0.05, rtol=0
    )


def noise(seconds: float, level: float) -> Tensor:
    return level * torch.randn(int(seconds * RATE), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("before_s", [5.0, 40.0])
def test_noise_around_a_short_speech_is_left_out(before_s: float) -> None:
    speech = speech_of(torch.cat([noise(before_s, 1e-3), voice(3.0)]))
    assert 3.0 <= len(speech) / RATE <= 3.2
    codec = Decoupled.tiny()
    found = timbre_of(codec, torch.cat([noise(before_s, 1e-3), voice(3.0)]), RATE)
    torch.testing.assert_close(found, timbre_of(codec, voice(3.0), RATE), atol=0.2, rtol=0)


@pytest.mark.parametrize(
    ("wave", "sentence"),
    [
        (noise(5.0, 3e-4), "silent"),
        (torch.full((5 * RATE,), 0.05), "silent"),
        (torch.cat([noise(3.0, 1e-4), torch.full((100,), 0.5), noise(3.0, 1e-4)]), "silent"),
        (torch.zeros(0), "silent"),
        (torch.zeros(5 * RATE), "silent"),
        (voice(0.5), "less than 1 second of speech"),
        (torch.cat([voice(0.6), torch.zeros(5 * RATE)]), "less than 1 second of speech"),
    ],
)
def test_what_makes_no_voice(wave: Tensor, sentence: str) -> None:
    with pytest.raises(UnusableRecordingError, match=sentence):
        timbre_of(Decoupled.tiny(), wave, RATE)


def test_what_is_far_softer_than_the_voice_is_silence() -> None:
    """Noise between silence and speech, which the noise floor says nothing of."""
    speech = speech_of(torch.cat([torch.zeros(3 * RATE), noise(2.0, 3e-3), torch.zeros(RATE), voice(3.0)]))
    assert 3.0 <= len(speech) / RATE <= 3.2
