"""Waveforms -> bytes of the six formats, as a stream or whole; at 24 kHz, whatever the codec's rate.

A stream has one header, and the end of the encoder's buffer is not lost. How much a format delays the first bytes
(80 ms of sound are pushed at a time): pcm, wav and opus nothing, mp3, aac and flac 80 ms.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import soundfile
import soxr
import torch
from av.audio.resampler import AudioResampler
from av.filter import Graph

from speech_mtp import audio

RATE = 24_000
"""Samples per second of everything that is sent: what clients of pcm assume."""

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Format:
    """How a format is made. ``container`` and ``codec`` of FFmpeg; None: bytes of PCM. ``whole`` for soundfile."""

    media_type: str
    container: str | None = None
    codec: str = ""
    whole: tuple[str, str] | None = None
    bit_rate: int | None = None
    options: tuple[tuple[str, str], ...] = ()


FORMATS = {
    "mp3": Format("audio/mpeg", "mp3", "libmp3lame", None, 64_000, (("write_xing", "0"), ("id3v2_version", "0"))),
    "opus": Format("audio/ogg", "ogg", "libopus", None, 32_000, (("page_duration", "20000"),)),
    "aac": Format("audio/aac", "adts", "aac", None, 64_000),
    "flac": Format("audio/flac", "flac", "flac", ("FLAC", "PCM_16")),
    "wav": Format("audio/wav", whole=("WAV", "PCM_16")),
    "pcm": Format("audio/pcm"),
}


class Encoder:
    """One stream of sound -> one stream of bytes. ``speed`` changes the tempo and keeps the pitch."""

    def __init__(self, name: str, sample_rate: int, speed: float = 1.0) -> None:
        self.format = FORMATS[name]
        self._shape = Shaper(sample_rate, speed)
        self._written = io.BytesIO()
        self._header = audio.wav_header(RATE) if name == "wav" else b""
        self._stream: Any = None
        if self.format.container is not None:
            self._open()

    def _open(self) -> None:
        options = dict(self.format.options)
        sink = _Sink(self._written)
        self._container = av.open(sink, "w", format=self.format.container, options=options)
        self._stream = self._container.add_stream(self.format.codec, rate=RATE, layout="mono")
        if self.format.bit_rate:
            self._stream.bit_rate = self.format.bit_rate
        context = self._stream.codec_context
        self._fit = AudioResampler(context.format, "mono", RATE)
        self._pts = 0

    def push(self, wave: torch.Tensor) -> bytes:
        """``wave [S]`` at the codec's rate -> the bytes that are sure now."""
        return self._encode(self._shape.push(wave.numpy()))

    def close(self) -> bytes:
        """The rest."""
        out = self._encode(self._shape.close())
        if self._stream is None:
            return out
        for packet in self._stream.encode(None):
            self._container.mux(packet)
        self._container.close()
        return out + self._new_bytes()

    def _encode(self, samples: Samples) -> bytes:
        if not len(samples):
            return b""
        if self._stream is None:
            header, self._header = self._header, b""
            return header + levels(samples).tobytes()
        frame = av.AudioFrame.from_ndarray(np.clip(samples, -1, 1)[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, self._pts, Fraction(1, RATE)
        self._pts += len(samples)
        for fitting in self._fit.resample(frame):
            for packet in self._stream.encode(fitting):
                self._container.mux(packet)
        return self._new_bytes()

    def _new_bytes(self) -> bytes:
        found = self._written.getvalue()
        self._written.seek(0)
        self._written.truncate()
        return found


class _Sink:
    """A file that can only be written to, so that no format goes back to its header."""

    def __init__(self, into: io.BytesIO) -> None:
        self._into = into

    def write(self, data: bytes) -> int:
        return self._into.write(data)


class Shaper:
    """Sound at the codec's rate -> sound at :data:`RATE`, ``speed`` times as fast."""

    def __init__(self, sample_rate: int, speed: float = 1.0) -> None:
        self._tempo = Tempo(sample_rate, speed) if speed != 1 else None
        self._rate = None
        if sample_rate != RATE:
            self._rate = soxr.ResampleStream(sample_rate, RATE, 1, dtype="float32")

    def push(self, samples: Samples) -> Samples:
        """The sound that is sure now."""
        if self._tempo is not None:
            samples = self._tempo.push(samples)
        return samples if self._rate is None else self._rate.resample_chunk(samples)

    def close(self) -> Samples:
        """The rest."""
        samples = self._tempo.close() if self._tempo is not None else np.zeros(0, np.float32)
        return samples if self._rate is None else self._rate.resample_chunk(samples, last=True)


class Tempo:
    """Time stretching by overlapping similar waves (FFmpeg's ``atempo``): the pitch stays."""

    def __init__(self, sample_rate: int, speed: float) -> None:
        self._sample_rate, self._pts = sample_rate, 0
        self._graph = Graph()
        last: Any = self._graph.add_abuffer(
            sample_rate=sample_rate, format="flt", layout="mono", time_base=Fraction(1, sample_rate)
        )
        for factor in (speed**0.5, speed**0.5) if not 0.5 <= speed <= 2 else (speed,):
            step = self._graph.add("atempo", str(factor))
            last.link_to(step)
            last = step
        last.link_to(self._graph.add("abuffersink"))
        self._graph.configure()

    def push(self, samples: Samples) -> Samples:
        """The sound that is sure now."""
        if not len(samples):
            return samples
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples)[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = self._sample_rate, self._pts, Fraction(1, self._sample_rate)
        self._pts += len(samples)
        self._graph.push(frame)
        return self._made()

    def close(self) -> Samples:
        """The rest."""
        self._graph.push(None)
        return self._made()

    def _made(self) -> Samples:
        parts = [np.zeros(0, np.float32)]
        while True:
            try:
                frame: Any = self._graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return np.concatenate(parts)
            parts.append(frame.to_ndarray()[0].astype(np.float32))


def levels(samples: Samples) -> npt.NDArray[np.int16]:
    """16-bit samples, as :func:`speech_mtp.audio.pcm16` makes them; torch belongs to the engine's thread."""
    return np.rint(samples * 32768).clip(-32768, 32767).astype("<i2")


def whole(name: str, waves: Iterable[torch.Tensor], sample_rate: int, speed: float = 1.0) -> bytes:
    """A finished file, with its true size where the format tells one."""
    shaper = Shaper(sample_rate, speed)
    samples = np.concatenate([*(shaper.push(wave.numpy()) for wave in waves), shaper.close()])
    made_by = FORMATS[name].whole
    if made_by is None:
        encoder = Encoder(name, RATE)
        return encoder.push(torch.from_numpy(samples)) + encoder.close()
    file = io.BytesIO()
    soundfile.write(file, levels(samples), RATE, format=made_by[0], subtype=made_by[1])
    return file.getvalue()
