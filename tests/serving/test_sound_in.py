"""The one decoder of strangers' sound: what it reads, and what it refuses while it decodes, before memory is full."""

from __future__ import annotations

import base64
import contextlib
import io
import random
import struct
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.logging
import numpy as np
import pytest
import soundfile
from av.audio.resampler import AudioResampler

from speech_mtp.frontends.base import Wave
from speech_mtp.serving import sound_in
from speech_mtp.serving.errors import ApiError
from speech_mtp.serving.sound_in import (
    TooMuchSoundError,
    UnusableSoundError,
    decode,
    from_base64,
    refused_as,
    resampled,
)
from tests.serving.hearing import recording, tone

FFMPEG = {"webm": "libopus", "mp4": "aac", "adts": "aac", "matroska": "flac", "ipod": "alac"}
SOUNDFILE = ("wav", "flac", "ogg", "mp3")


def by_ffmpeg(container: str, codec: str, seconds: float = 2.0, rate_hz: int = 48_000) -> bytes:
    """A file of a tone."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream: Any = out.add_stream(codec, rate=rate_hz, layout="mono")
        fit = AudioResampler(stream.codec_context.format, "mono", rate_hz)
        frame = av.AudioFrame.from_ndarray(tone(seconds, rate_hz)[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate_hz, 0, Fraction(1, rate_hz)
        for piece in [*fit.resample(frame), *fit.resample(None)]:
            out.mux(stream.encode(piece))
        out.mux(stream.encode(None))
    return file.getvalue()


FILES = {
    **{kind: recording(2.0, kind) for kind in SOUNDFILE},
    "ogg opus": recording(2.0, "ogg", 48_000, "OPUS"),
    "wav of floats": recording(2.0, "wav", subtype="FLOAT"),
    **{container: by_ffmpeg(container, codec) for container, codec in FFMPEG.items()},
}


def pitch_hz(wave: Wave, rate_hz: int) -> float:
    return float(np.abs(np.fft.rfft(wave)).argmax() * rate_hz / len(wave))


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("rate_hz", [16_000, 24_000])
def test_every_kind_keeps_its_pitch_and_its_length(kind: str, rate_hz: int) -> None:
    wave = decode(FILES[kind], rate_hz, 60)
    assert wave.dtype == np.float32
    assert len(wave) / rate_hz == pytest.approx(2.0, abs=0.06)
    assert pitch_hz(wave, rate_hz) == pytest.approx(220, abs=1)
    assert 0.2 < np.abs(wave).max() < 0.5


def test_channels_are_mixed() -> None:
    file = io.BytesIO()
    left = tone(1.0)
    soundfile.write(file, np.stack([left, -0.5 * left], 1), 24_000, format="WAV", subtype="FLOAT")
    np.testing.assert_allclose(decode(file.getvalue(), 24_000, 60), 0.25 * left, atol=1e-6)


def test_loud_samples_are_clipped() -> None:
    file = io.BytesIO()
    soundfile.write(file, 1e20 * tone(0.5), 24_000, format="WAV", subtype="FLOAT")
    assert np.abs(decode(file.getvalue(), 16_000, 60)).max() == 1


# -- too much ---------------------------------------------------------------------------------------------------------
def silence(kind: str, seconds: int) -> bytes:
    file = io.BytesIO()
    subtype = "OPUS" if kind == "OGG" else "PCM_16"
    with soundfile.SoundFile(file, "w", 48_000, 1, subtype=subtype, format=kind) as out:
        second = np.zeros(48_000, np.float32)
        for _ in range(seconds):
            out.write(second)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["FLAC", "OGG"])
def test_a_bomb_fills_no_memory(kind: str) -> None:
    bomb = silence(kind, 610)
    assert len(bomb) < 600_000, "small on its way"
    tracemalloc.start()
    try:
        with pytest.raises(TooMuchSoundError, match="longer than 60 seconds"):
            decode(bomb, 24_000, 60)
        with pytest.raises(TooMuchSoundError, match="longer than 600 seconds"):
            decode(bomb, 16_000, 600)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 64 * 2**20


def test_the_samples_are_counted_whatever_the_header_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sound_in, "MOST_DECODED", 2**20)
    file = io.BytesIO()
    soundfile.write(file, np.zeros((96_000 * 2, 2), np.float32), 96_000, format="FLAC")
    with pytest.raises(TooMuchSoundError, match="MiB"):
        decode(file.getvalue(), 16_000, 600)


# -- forged -----------------------------------------------------------------------------------------------------------
def forged_wav(
    channels: int = 1, rate_hz: int = 24_000, size: int | None = None, kind: int = 1, body: int = 4800
) -> bytes:
    sound = b"\0" * body
    size = len(sound) if size is None else size
    wide = 2 * channels
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, kind, channels, rate_hz, rate_hz * wide % 2**32, wide % 2**16, 16)
    return (
        struct.pack("<4sI4s", b"RIFF", size & 0xFFFFFFFF, b"WAVE") + head + struct.pack("<4sI", b"data", size) + sound
    )


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (forged_wav(channels=8), "8 channels"),
        (forged_wav(channels=1000), "damaged|channels"),
        (forged_wav(rate_hz=1), "1 Hz"),
        (forged_wav(rate_hz=4_000_000_000), "Hz|damaged"),
        (forged_wav(rate_hz=192_000), "192000 Hz"),
        (forged_wav(kind=0x9999), "damaged"),
        (forged_wav(channels=0), "damaged"),
        (forged_wav(body=0), "no sound"),
        (b"", "is empty"),
        (b"\0", "no sound"),
        (b"RIFF\0\0\0\0WAVE", "damaged"),
        (b"RIFF\0\0\0\0AVI LIST", "no sound"),
        (b"fLaC", "damaged"),
        (b"OggS" + b"\0" * 100, "damaged"),
        (b"\xff\xfb" + b"\0" * 2000, "damaged|no sound"),
        (b"\xff\xf1" + b"\0" * 2000, "damaged|no sound"),
        (b"ID3" + b"\xff" * 2000, "damaged|no sound"),
        (b"\x1a\x45\xdf\xa3" + b"\0" * 100, "damaged"),
        (b"\0\0\0\x20ftypM4A " + b"\0" * 100, "damaged|no sound"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", "no sound"),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/x.wav\n", "no sound"),
        (b"ffconcat version 1.0\nfile '/etc/passwd'\n", "no sound"),
        (b"<?xml version='1.0'?><MPD/>", "no sound"),
        (b"caff\0\x01\0\0", "no sound"),
        (b"FORM\0\0\0\x0aAIFF", "no sound"),
        (b".snd\0\0\0\x18", "no sound"),
        (b"http://127.0.0.1/x.wav", "no sound"),
        (b"/etc/passwd", "no sound"),
    ],
)
def test_forged_files_are_refused_in_a_sentence(data: bytes, says: str) -> None:
    with pytest.raises(UnusableSoundError, match=says) as refused:
        decode(data, 16_000, 60)
    assert not isinstance(refused.value, TooMuchSoundError)
    assert str(refused.value).endswith(".")


def test_a_header_without_a_size_is_read_to_the_end() -> None:
    assert len(decode(forged_wav(size=0xFFFFFFFF), 24_000, 60)) == 2400


def test_samples_that_are_no_numbers_are_refused() -> None:
    file = io.BytesIO()
    soundfile.write(file, np.full(1000, np.nan, np.float32), 24_000, format="WAV", subtype="FLOAT")
    with pytest.raises(ValueError, match="NaN"):
        decode(file.getvalue(), 16_000, 60)


def inside(data: bytes, path: tuple[bytes, ...], body: bytes) -> bytes:
    """``data`` of an MP4 with another ``body`` of the box at ``path``."""
    out, at = b"", 0
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        name, old = data[at + 4 : at + 8], data[at + 8 : at + size]
        if name == path[0]:
            old = inside(old, path[1:], body) if path[1:] else body
        out += struct.pack(">I", len(old) + 8) + name + old
        at += size
    return out


def pointing_to(path: str) -> bytes:
    """An MP4 that says that its samples lie in the file at ``path``."""
    name = path.encode() + b"\0" * (len(path) % 2)
    alias = b"alis" + bytes(14) + b"\1" + b"v".ljust(27, b"\0") + bytes(12) + b"\1" + b"f".ljust(63, b"\0") + bytes(16)
    alias += struct.pack(">HH16xHH", 1, 1, 2, len(name)) + name + struct.pack(">HH40x", 0xFFFF, 0)
    references = struct.pack(">II", 0, 1) + struct.pack(">I", len(alias) + 4) + alias
    return inside(FILES["mp4"], (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"), references)


def test_a_container_that_points_to_a_file_opens_none(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.m4a").write_bytes(FILES["mp4"])
    forged = pointing_to(str(tmp_path / "other.m4a"))
    with pytest.raises(ValueError, match="no sound"):
        decode(forged, 16_000, 60)
    before = av.logging.get_level()
    av.logging.set_level(av.logging.VERBOSE)
    try:  # asked to follow it, FFmpeg sees where it points to, and that it may not
        options = {"enable_drefs": "1", "use_absolute_path": "1", "protocol_whitelist": sound_in.PROTOCOLS}
        with av.logging.Capture(False) as said, av.open(io.BytesIO(forged), format="mov", options=options):
            assert any("not on whitelist" in line for _, _, line in said)
    finally:
        av.logging.set_level(before)


@pytest.mark.parametrize("kind", FILES)
def test_damaged_files_are_refused_or_read_in_part(kind: str) -> None:
    rng = random.Random(kind)
    good = FILES[kind]
    for _ in range(25):
        data = bytearray(good[: rng.randrange(len(good))] if rng.random() < 0.5 else good)
        for _ in range(rng.choice((0, 1, 8, 64))):
            if data:
                data[rng.randrange(min(len(data), rng.choice((64, len(data)))))] = rng.randrange(256)
        with contextlib.suppress(UnusableSoundError):  # any other exception is a fault
            wave = decode(bytes(data), 16_000, 60)
            assert len(wave) <= 60 * 16_000 + 1
            assert np.abs(wave).max(initial=0) <= 1


# -- the rest ---------------------------------------------------------------------------------------------------------
def test_base64() -> None:
    assert from_base64(base64.b64encode(b"sound").decode()) == b"sound"
    for text in ("%", "a", "é", "data:audio/wav;base64,AAAA", "http://127.0.0.1/x"):
        with pytest.raises(ValueError, match="not base64"):
            from_base64(text)


def test_refusals_name_their_field() -> None:
    with pytest.raises(ApiError) as wrong, refused_as("file"):
        decode(b"x", 16_000, 60)
    assert (wrong.value.status_code, wrong.value.param) == (400, "file")
    with pytest.raises(ApiError) as long, refused_as("file"):
        decode(FILES["wav"], 16_000, 1)
    assert (long.value.status_code, long.value.code) == (413, "audio_too_long")


def test_waves_are_resampled() -> None:
    wave = tone(1.0)
    assert resampled(wave, 24_000, 24_000) is wave
    assert pitch_hz(resampled(wave, 24_000, 16_000), 16_000) == pytest.approx(220, abs=1)
