"""A recording in another voice: the same however it comes in pieces, as long as it was, and with its own codes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from speech_mtp.codecs.decoupled import Decoupled
from speech_mtp.types import Codes
from speech_mtp.voices.conversion import Converter
from speech_mtp.voices.reference import reference_of, timbre_of
from tests.voices.test_reference import RATE, voice

CODEC = Decoupled.tiny()
TARGET = torch.randn(CODEC.spec.timbre_dim, generator=torch.Generator().manual_seed(3))


def recording(seconds: float) -> Tensor:
    """Two voices and noise, so that codes change all the time."""
    torch.manual_seed(0)
    half = voice(seconds / 2)
    other = voice(seconds - seconds / 2, 0.4).flip(0)
    return torch.cat([half, other]) + 0.02 * torch.randn(len(half) + len(other))


def converted(wave: Tensor, pieces: list[int], **settings: float) -> Tensor:
    converter = Converter(CODEC, TARGET, **settings)  # type: ignore[arg-type]
    return torch.cat([*(converter.push(piece) for piece in wave.split(pieces)), converter.close()])


def test_a_block_is_heard_as_in_the_whole() -> None:
    """Before rounding, which hides small differences: with the reach nothing of what is around is missing, with half of
    it something is."""
    wave, size = recording(6.0), CODEC.spec.samples_per_frame
    speaker = timbre_of(CODEC, wave, RATE)[None]

    def heard(first: int, end: int) -> Tensor:
        part = wave[None, first * size : end * size]
        mel, low, mask = CODEC.features(part, torch.tensor([part.shape[1]]))
        prosody = CODEC.prosody(low, mask, CODEC.speaker_of_prosody(speaker))
        return torch.cat([CODEC.content(mel, mask), prosody], -1)[0]

    with torch.inference_mode():
        whole = heard(0, 150)[60:70]
        apart = {
            reach: float((heard(60 - reach, 70 + reach)[reach : reach + 10] - whole).abs().max())
            for reach in (CODEC.reach_frames, CODEC.reach_frames // 2)
        }
    assert apart[CODEC.reach_frames] < 1e-6 < 1e-5 < apart[CODEC.reach_frames // 2]


@pytest.mark.parametrize("seconds", [0.1, 1.5, 4.03, 13.0])
def test_pieces_make_no_difference(seconds: float) -> None:
    wave = recording(seconds)
    whole = converted(wave, [len(wave)])
    assert len(whole) == len(wave)
    pieces = [min(1777, len(wave) - at) for at in range(0, len(wave), 1777)]
    torch.testing.assert_close(converted(wave, pieces), whole, atol=1e-4, rtol=0)
    torch.testing.assert_close(converted(wave, pieces, block_s=2.0), whole, atol=1e-4, rtol=0)


def test_it_is_the_recordings_codes_with_the_other_timbre() -> None:
    wave = recording(4.0)
    reference = reference_of(wave, RATE, RATE)
    codes = CODEC.encode(reference.gain * wave[None, None], timbre=reference.timbre(CODEC)[None])
    spoken = CODEC.decode(Codes(codes.frames, codes.lengths, TARGET[None]))[0, 0] / reference.gain
    torch.testing.assert_close(converted(wave, [len(wave)]), spoken[: len(wave)], atol=1e-4, rtol=0)


def test_it_comes_while_the_recording_comes() -> None:
    """With the speaker known, sound is at most the reach, a block and the codec's delay behind."""
    wave = recording(8.0)
    converter = Converter(CODEC, TARGET, source=timbre_of(CODEC, wave, RATE))
    said = 0
    for at, piece in enumerate(wave.split(RATE // 2)):
        said += len(converter.push(piece))
        behind_s = (at + 1) / 2 - said / RATE
        assert behind_s < (CODEC.reach_frames + 1) / CODEC.spec.frame_rate_hz + 0.32 + CODEC.delay_s
        assert len(converter._kept) < 3 * RATE, "what has been converted is forgotten"


def test_a_quiet_recording_gives_the_same_quietly() -> None:
    wave = recording(3.0)
    torch.testing.assert_close(20 * converted(wave / 20, [len(wave)]), converted(wave, [len(wave)]), atol=1e-3, rtol=0)


def test_who_speaks_is_found_behind_a_long_silence() -> None:
    """Behind 15 seconds of faint noise the speech is what it is without them."""
    speech = voice(6.0)
    noise = 1e-5 * torch.randn(15 * RATE, generator=torch.Generator().manual_seed(1))
    converter = Converter(CODEC, TARGET)
    made = torch.cat([*(converter.push(piece) for piece in torch.cat([noise, speech]).split(RATE)), converter.close()])
    assert len(made) == len(noise) + len(speech)
    torch.testing.assert_close(converter._source, timbre_of(CODEC, speech, RATE), atol=0.2, rtol=0)


def test_a_minute_of_silence_is_not_waited_for_longer() -> None:
    converter, silence = Converter(CODEC, TARGET), torch.zeros(RATE)
    said = sum(len(converter.push(silence)) for _ in range(70))
    assert said > 55 * RATE
    assert len(converter._kept) < 15 * RATE


def test_silence_is_converted_too() -> None:
    wave = torch.zeros(2 * RATE)
    assert len(converted(wave, [RATE, RATE])) == len(wave)
