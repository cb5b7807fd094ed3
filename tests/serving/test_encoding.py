"""Encoders: the whole sound in every format, soon, at the right rate, with one header; speed without chipmunks."""

from __future__ import annotations

import io

import av
import numpy as np
import pytest
import soundfile
import torch

from speech_mtp.serving.encoding import FORMATS, RATE, Encoder, Tempo, whole
from tests.serving.test_speech import seconds

DELAYS = {"pcm": 0, "wav": 0, "opus": 0, "mp3": 1, "aac": 1, "flac": 1}
"""Pushes of 80 ms after which there must be bytes."""


def tone(rate: int, hz: float = 440.0, duration_s: float = 2.0) -> torch.Tensor:
    return 0.5 * torch.sin(2 * torch.pi * hz * torch.arange(int(rate * duration_s)) / rate)


def streamed(name: str, wave: torch.Tensor, rate: int, speed: float = 1.0) -> list[bytes]:
    encoder = Encoder(name, rate, speed)
    return [*(encoder.push(part) for part in wave.split(rate * 8 // 100)), encoder.close()]


def decoded(data: bytes, name: str) -> np.ndarray:
    """``[S]`` at 24 kHz."""
    if name == "pcm":
        return np.frombuffer(data, "<i2") / 32768
    with av.open(io.BytesIO(data)) as file:
        fit = av.AudioResampler("flt", "mono", RATE)
        return np.concatenate([part.to_ndarray()[0] for f in file.decode(audio=0) for part in fit.resample(f)])


def pitch(samples: np.ndarray) -> float:
    middle = samples[len(samples) // 4 : -len(samples) // 4]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    return float(spectrum.argmax() * RATE / len(middle))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100])
def test_a_tone_keeps_its_pitch_and_its_length(name: str, rate: int) -> None:
    for data in (b"".join(streamed(name, tone(rate), rate)), whole(name, [tone(rate)], rate)):
        assert pitch(decoded(data, name)) == pytest.approx(440, abs=2)
        assert 2.0 <= seconds(data, name) + 0.002 <= 2.08


@pytest.mark.parametrize("name", FORMATS)
def test_the_tail_is_there(name: str) -> None:
    wave = torch.cat([torch.zeros(24_000), tone(24_000, 440, 0.2)])
    samples = decoded(b"".join(streamed(name, wave, 24_000)), name)
    end = samples[int(1.02 * RATE) : int(1.18 * RATE)]
    assert np.abs(end).max() > 0.4
    assert np.abs(samples[: int(0.9 * RATE)]).max() < 0.02


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_come_soon(name: str) -> None:
    first = next(i for i, data in enumerate(streamed(name, tone(24_000), 24_000)) if data)
    assert first <= DELAYS[name]


@pytest.mark.parametrize(("name", "mark"), [("wav", b"RIFF"), ("flac", b"fLaC"), ("opus", b"OpusHead")])
def test_there_is_one_header(name: str, mark: bytes) -> None:
    assert b"".join(streamed(name, tone(24_000), 24_000)).count(mark) == 1


@pytest.mark.parametrize("speed", [0.25, 0.5, 0.7, 1.3, 2.0, 3.0, 4.0])
def test_speed_changes_the_length_and_not_the_pitch(speed: float) -> None:
    data = b"".join(streamed("pcm", tone(16_000), 16_000, speed))
    assert seconds(data, "pcm") == pytest.approx(2 / speed, rel=0.02, abs=0.06)
    assert pitch(decoded(data, "pcm")) == pytest.approx(440, abs=8)


def test_speed_streams() -> None:
    tempo, made = Tempo(24_000, 1.5), 0
    for part in tone(24_000).numpy().reshape(-1, 1920)[:10]:
        made += len(tempo.push(part))
    assert made > 0.6 * 10 * 1920 / 1.5


@pytest.mark.parametrize("name", ["wav", "flac"])
def test_a_finished_file_tells_its_true_size(name: str) -> None:
    assert soundfile.info(io.BytesIO(whole(name, [tone(24_000)], 24_000))).frames == 48_000


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_said_is_no_fault(name: str) -> None:
    assert isinstance(Encoder(name, 24_000).close(), bytes)
    assert isinstance(whole(name, [torch.zeros(0)], 24_000), bytes)


def test_what_is_too_loud_is_clipped_and_does_not_wrap() -> None:
    data = Encoder("pcm", 24_000).push(torch.tensor([1.5, -1.5, 1.0, -1.0]))
    assert np.frombuffer(data, "<i2").tolist() == [32767, -32768, 32767, -32768]
