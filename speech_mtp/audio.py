"""Audio files and PCM bytes <-> waveforms ``[S]`` of float32 in [-1, 1]. One channel only.

A file of another sample rate is refused by :func:`read`; :func:`resample` and :func:`read_blocks` resample.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr
import torch
import torchaudio.functional
from torch import Tensor

from speech_mtp.files import replacing

FORMATS = {".wav": "WAV", ".flac": "FLAC"}
UNKNOWN_SIZE = 0xFFFFFFFF


def read(path: str | os.PathLike[str], sample_rate: int | None = None, *, mono: bool = False) -> tuple[Tensor, int]:
    """Read an audio file: ``(wave [S] float32, sample rate in Hz)``.

    ``sample_rate`` is the rate that the caller needs; ``mono`` mixes several channels down to their mean.
    Raises ``FileNotFoundError``, and ``ValueError`` for a file that is no audio, of another sample rate, of several
    channels, without samples, or with samples that are NaN or infinite.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no audio file {os.fspath(path)}.")
    wave, rate = decode(path, os.fspath(path), mono=mono)
    if sample_rate is not None and rate != sample_rate:
        raise ValueError(
            f"{os.fspath(path)} is sampled at {rate} Hz, but {sample_rate} Hz is needed; resample it first."
        )
    return wave, rate


def decode(
    source: str | os.PathLike[str] | BinaryIO, name: str, *, mono: bool = False, longest_s: float = math.inf
) -> tuple[Tensor, int]:
    """As :func:`read`, from a file or from memory, at any rate; ``name`` is what errors call it.

    Also raises ``ValueError`` for more than ``longest_s`` seconds, before they are read.
    """
    try:
        with soundfile.SoundFile(source) as file:
            if file.frames > longest_s * file.samplerate:
                minutes = file.frames / file.samplerate / 60
                raise ValueError(
                    f"{name} lasts {minutes:.0f} minutes, more than {longest_s / 60:.0f}; cut it in parts."
                )
            samples, rate = file.read(dtype="float32", always_2d=True), file.samplerate
    except (soundfile.LibsndfileError, EOFError) as error:
        raise ValueError(f"{name} cannot be read as audio; give a WAV, FLAC or OGG file.") from error
    num_samples, num_channels = samples.shape
    if num_channels > 1 and not mono:
        raise ValueError(
            f"{name} has {num_channels} channels, but one is needed; "
            "mix it down in a sound editor, or read it with mono=True."
        )
    if num_samples == 0:
        raise ValueError(f"{name} holds no samples; give a file that is not empty.")
    wave = torch.from_numpy(samples).mean(dim=1)
    if not wave.isfinite().all():
        raise ValueError(f"{name} holds samples that are NaN or infinite; export it again.")
    return wave, rate


def write(path: str | os.PathLike[str], wave: Tensor, sample_rate: int) -> None:
    """Write ``wave [S]`` as a 16-bit ``.wav`` or ``.flac`` file, whole or not at all; louder samples are clipped.

    Raises ``ValueError`` for another suffix and for a wave that is empty, NaN or not ``[S]``, and ``OSError`` when
    the file cannot be written.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"Cannot write {os.fspath(path)}: the name must end in {' or '.join(FORMATS)}.")
    if wave.numel() == 0:
        raise ValueError(f"Cannot write {os.fspath(path)}: there are no samples to write.")
    samples = _int16(wave).numpy()
    with replacing(path) as temporary:
        try:
            soundfile.write(temporary, samples, sample_rate, subtype="PCM_16", format=FORMATS[suffix])
        except soundfile.LibsndfileError as error:
            raise OSError(str(error)) from error


def read_blocks(path: str | os.PathLike[str], sample_rate: int) -> Iterator[Tensor]:
    """A recording of any length, rate and number of channels, a second at a time: waves ``[S]`` at ``sample_rate`` Hz,
    their channels mixed. Errors as for :func:`read`."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no audio file {os.fspath(path)}.")
    try:
        with soundfile.SoundFile(os.fspath(path)) as file:
            if not file.frames:
                raise ValueError(f"{os.fspath(path)} holds no samples; give a file that is not empty.")
            resampler = soxr.ResampleStream(file.samplerate, sample_rate, 1, dtype="float32")
            while len(block := file.read(file.samplerate, dtype="float32", always_2d=True)):
                mixed = block.mean(1)
                if not np.isfinite(mixed).all():
                    raise ValueError(f"{os.fspath(path)} holds samples that are NaN or infinite; export it again.")
                yield torch.from_numpy(resampler.resample_chunk(mixed))
            yield torch.from_numpy(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    except (soundfile.LibsndfileError, EOFError) as error:
        raise ValueError(f"{os.fspath(path)} cannot be read as audio; give a WAV, FLAC or OGG file.") from error


def write_blocks(path: str | os.PathLike[str], waves: Iterable[Tensor], sample_rate: int) -> float:
    """Write ``waves [S]`` one after the other as they come, whole or not at all; their seconds. As :func:`write`."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise ValueError(f"Cannot write {os.fspath(path)}: the name must end in {' or '.join(FORMATS)}.")
    samples = 0
    with replacing(path) as temporary:
        try:
            with soundfile.SoundFile(
                temporary, "w", sample_rate, channels=1, subtype="PCM_16", format=FORMATS[suffix]
            ) as file:
                for wave in waves:
                    file.write(_int16(wave).numpy())
                    samples += len(wave)
        except soundfile.LibsndfileError as error:
            raise OSError(str(error)) from error
    return samples / sample_rate


def resample(wave: Tensor, from_hz: int, to_hz: int) -> Tensor:
    """``wave [..., S]`` at ``from_hz`` -> ``[..., ceil(S * to_hz / from_hz)]``, by windowed-sinc interpolation."""
    if from_hz <= 0 or to_hz <= 0:
        raise ValueError(f"Cannot resample from {from_hz} Hz to {to_hz} Hz; both rates must be positive.")
    return torchaudio.functional.resample(wave, from_hz, to_hz)


def at_seconds(track: Tensor, seconds: Tensor, rate_hz: float) -> Tensor:
    """The entries of ``track [N, ...]``, of which there are ``rate_hz`` a second, that lie at ``seconds [M]``: times
    past its end have the last."""
    return track[(seconds * rate_hz).long().clamp(max=len(track) - 1)]


def pcm16(wave: Tensor) -> bytes:
    """``wave [S]`` -> 16-bit little-endian PCM, rounded to the nearest step and clipped to full scale."""
    return bytes(_int16(wave).numpy().astype("<i2").tobytes())


def wav_header(sample_rate: int) -> bytes:
    """The 44 bytes that precede a stream of 16-bit mono PCM of unknown length: its sizes are 0xFFFFFFFF."""
    chunk = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, sample_rate, 2 * sample_rate, 2, 16)
    return struct.pack("<4sI4s", b"RIFF", UNKNOWN_SIZE, b"WAVE") + chunk + struct.pack("<4sI", b"data", UNKNOWN_SIZE)


def _int16(wave: Tensor) -> Tensor:
    if wave.ndim != 1:
        raise ValueError(f"A waveform must be [S], one channel, but its shape is {list(wave.shape)}.")
    wave = wave.detach().to("cpu", torch.float32)
    if not wave.isfinite().all():
        raise ValueError("The waveform holds samples that are NaN or infinite.")
    return (wave * 32768).round().clamp(-32768, 32767).to(torch.int16)
