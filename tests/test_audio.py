"""Audio files: what is read comes back exactly, what cannot be used is refused in one sentence."""

from __future__ import annotations

import io
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from speech_mtp import audio


@pytest.fixture
def tone() -> torch.Tensor:
    return 0.5 * torch.sin(2 * math.pi * 440 * torch.arange(2400) / 24000)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV"])
def test_written_audio_is_16_bit_and_reads_back_within_half_a_step(
    tmp_path: Path, tone: torch.Tensor, suffix: str
) -> None:
    path = tmp_path / f"tone{suffix}"
    audio.write(path, tone, 24000)
    wave, rate = audio.read(path, 24000)
    assert (rate, wave.dtype, wave.shape) == (24000, torch.float32, tone.shape)
    assert (wave - tone).abs().max() <= 0.5 / 32768
    assert soundfile.info(path).subtype == "PCM_16"
    audio.write(path, wave, rate)
    assert torch.equal(audio.read(path)[0], wave), "a second round trip must change nothing"
    assert os.listdir(tmp_path) == [path.name]


def test_stereo_is_refused_and_mixed_down_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([np.full(10, 0.5), np.full(10, -0.25)], axis=1), 16000)
    with pytest.raises(ValueError, match=r"stereo\.wav has 2 channels.*mono=True"):
        audio.read(path)
    wave, _ = audio.read(path, mono=True)
    assert torch.allclose(wave, torch.full((10,), 0.125), atol=1e-4)


@pytest.mark.parametrize("rate", [8_000, 24_000, 44_100])
def test_a_recording_in_blocks_is_the_whole_mixed_down_at_the_rate_that_is_wanted(tmp_path: Path, rate: int) -> None:
    time = np.arange(int(2.3 * rate)) / rate
    left, right = np.sin(2 * np.pi * 200 * time), np.sin(2 * np.pi * 500 * time)
    soundfile.write(tmp_path / "stereo.wav", 0.5 * np.stack([left, right], 1), rate)
    wave = torch.cat(list(audio.read_blocks(tmp_path / "stereo.wav", 24_000)))
    there = np.arange(len(wave)) / 24_000
    expected = 0.25 * (np.sin(2 * np.pi * 200 * there) + np.sin(2 * np.pi * 500 * there))
    assert len(wave) == pytest.approx(2.3 * 24_000, abs=2)
    assert np.abs(wave.numpy() - expected)[500:-500].max() < 5e-3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_samples_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    path = tmp_path / "bad.wav"
    soundfile.write(path, np.array([0.0, bad], dtype=np.float32), 24000, subtype="FLOAT")
    with pytest.raises(ValueError, match="NaN or infinite"):
        audio.read(path)
    with pytest.raises(ValueError, match="NaN or infinite"):
        audio.write(tmp_path / "out.wav", torch.tensor([0.0, bad]), 24000)
    assert not (tmp_path / "out.wav").exists()


def test_unusable_files_are_refused_by_name(tmp_path: Path) -> None:
    empty, text = tmp_path / "empty.wav", tmp_path / "text.wav"
    soundfile.write(empty, np.zeros(0), 24000)
    text.write_text("this is no audio")
    (tmp_path / "zero.wav").touch()
    with pytest.raises(ValueError, match=r"empty\.wav holds no samples"):
        audio.read(empty)
    for path in (text, tmp_path / "zero.wav"):
        with pytest.raises(ValueError, match=rf"{path.name} cannot be read as audio"):
            audio.read(path)
    for path in (tmp_path / "missing.wav", tmp_path):
        with pytest.raises(FileNotFoundError, match="There is no audio file"):
            audio.read(path)


def test_audio_in_memory_is_read_as_a_file_is(tmp_path: Path, tone: torch.Tensor) -> None:
    audio.write(tmp_path / "tone.wav", tone, 24000)
    wave, rate = audio.decode(io.BytesIO((tmp_path / "tone.wav").read_bytes()), "the tone")
    assert torch.equal(wave, audio.read(tmp_path / "tone.wav")[0])
    assert rate == 24000
    with pytest.raises(ValueError, match="the tone cannot be read as audio"):
        audio.decode(io.BytesIO(b"this is no audio"), "the tone")


def test_audio_that_is_too_long_is_refused_before_it_is_read(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "long.wav", np.zeros(130 * 8000), 8000)
    with pytest.raises(ValueError, match=r"lasts 2 minutes, more than 1; cut it in parts\."):
        audio.decode(tmp_path / "long.wav", "it", longest_s=60)
    assert len(audio.decode(tmp_path / "long.wav", "it", longest_s=130)[0]) == 130 * 8000


def test_another_sample_rate_is_refused(tmp_path: Path, tone: torch.Tensor) -> None:
    audio.write(tmp_path / "tone.wav", tone, 16000)
    with pytest.raises(ValueError, match=r"sampled at 16000 Hz, but 24000 Hz is needed"):
        audio.read(tmp_path / "tone.wav", 24000)


@pytest.mark.parametrize(
    ("name", "wave", "error", "sentence"),
    [
        ("out.mp3", torch.zeros(4), ValueError, r"must end in \.wav or \.flac"),
        ("out.wav", torch.zeros(0), ValueError, "no samples to write"),
        ("out.wav", torch.zeros(1, 4), ValueError, r"its shape is \[1, 4\]"),
        ("missing/out.wav", torch.zeros(4), OSError, "there is no folder"),
        ("folder.wav", torch.zeros(4), OSError, "not a regular file"),
    ],
)
def test_what_cannot_be_written_leaves_nothing(
    tmp_path: Path, name: str, wave: torch.Tensor, error: type[Exception], sentence: str
) -> None:
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(error, match=sentence):
        audio.write(tmp_path / name, wave, 24000)
    assert os.listdir(tmp_path) == ["folder.wav"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, tone: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tone.wav"
    audio.write(path, tone, 24000)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audio.soundfile, "write", full)
    with pytest.raises(OSError, match=re.escape(f"Cannot write {path}: No space left on device.")):
        audio.write(path, -tone, 24000)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["tone.wav"]


def test_writing_through_a_link_keeps_the_link(tmp_path: Path, tone: torch.Tensor) -> None:
    (tmp_path / "link.wav").symlink_to(tmp_path / "real.wav")
    audio.write(tmp_path / "link.wav", tone, 24000)
    assert (tmp_path / "link.wav").is_symlink()
    assert (tmp_path / "real.wav").is_file()


def test_pcm16_rounds_and_clips() -> None:
    wave = torch.tensor([0.0, 0.6 / 32768, -0.4 / 32768, 1.0, 7.0, -1.0, -7.0])
    assert np.frombuffer(audio.pcm16(wave), "<i2").tolist() == [0, 1, 0, 32767, 32767, -32768, -32768]
    assert audio.pcm16(torch.zeros(0)) == b""


def test_a_header_and_pcm_are_a_wav_stream(tone: torch.Tensor) -> None:
    header = audio.wav_header(24000)
    assert len(header) == 44
    assert header[4:8] == header[40:44] == b"\xff\xff\xff\xff"
    wave, rate = soundfile.read(io.BytesIO(header + audio.pcm16(tone)), dtype="float32")
    assert (rate, len(wave)) == (24000, len(tone))


def test_resample_keeps_the_tone_and_the_duration(tone: torch.Tensor) -> None:
    low = audio.resample(tone, 24000, 16000)
    assert low.shape == (1600,)
    expected = 0.5 * torch.sin(2 * math.pi * 440 * torch.arange(1600) / 16000)
    assert (low - expected)[100:-100].abs().max() < 0.01
    assert audio.resample(tone.expand(2, 1, -1), 24000, 48000).shape == (2, 1, 4800)
    with pytest.raises(ValueError, match="from 24000 Hz to 0 Hz"):
        audio.resample(tone, 24000, 0)
