"""Sound that strangers send: bytes -> one channel of float32 at the rate that is wanted, or a refusal.

The one door for recordings of transcriptions, of voices, of consents and of chats. Bytes only: nothing here opens a
name or an address. The first bytes choose the decoder among a few, so that nothing is probed; what is too long, too
wide or too large is refused while it is decoded, before it fills the memory, whatever its header says.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import av
import numpy as np
import numpy.typing as npt
import soundfile
import soxr
from av.audio.resampler import AudioResampler

from speech_mtp.serving.errors import ApiError

Samples = npt.NDArray[np.float32]

MOST_CHANNELS = 2
LOWEST_HZ, HIGHEST_HZ = 8_000, 96_000
MOST_DECODED = 256 * 2**20
"""Bytes of decoded samples, all channels, that are looked at."""
BLOCK = 2**15
"""Sample frames that are decoded at a time."""
CODECS = ("aac", "aac_latm", "alac", "flac", "mp3", "mp3float", "opus", "vorbis")
"""What may stand in a container that FFmpeg opens."""
PROTOCOLS = "none"
"""What else it may open: there is no protocol of this name."""
KNOWN = "WAV, FLAC, Ogg, MP3, WebM, M4A or AAC"


class UnusableSoundError(ValueError):
    """This cannot be heard; the sentence says why."""


class TooMuchSoundError(UnusableSoundError):
    """There is more of it than may be sent."""


def decode(data: bytes, rate_hz: int, most_s: float) -> Samples:
    """The sound of a file ``data``: ``[S]`` at ``rate_hz``, its channels mixed, in [-1, 1].

    Raises UnusableSoundError for what is not sound of a known kind, is damaged, has more than two channels or another
    rate than 8 to 96 kHz; TooMuchSoundError for more than ``most_s`` seconds, or 256 MiB of samples.
    """
    mixer = _Mixer(rate_hz, most_s)
    try:
        for block, block_hz in _opener(data)(data):
            mixer.push(block, block_hz)
    except UnusableSoundError:
        raise
    except (soundfile.SoundFileError, av.FFmpegError, EOFError, ValueError) as error:
        message = "The recording is damaged, or is not what its first bytes say; export it again."
        raise UnusableSoundError(message) from error
    return mixer.close()


@contextmanager
def refused_as(param: str) -> Iterator[None]:
    """A refusal inside is told to the client as one of the field ``param``: ApiError 400, or 413 for too much."""
    try:
        yield
    except UnusableSoundError as error:
        status = 413 if isinstance(error, TooMuchSoundError) else 400
        raise ApiError(status, str(error), param, "audio_too_long" if status == 413 else None) from None


def from_base64(text: str) -> bytes:
    """The bytes of a field in base64. Raises UnusableSoundError for anything else."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UnusableSoundError("The data is not base64.") from None


def resampled(samples: Samples, from_hz: int, to_hz: int) -> Samples:
    """``samples [S]`` at ``from_hz`` -> the same sound at ``to_hz``."""
    return samples if from_hz == to_hz else soxr.resample(samples, from_hz, to_hz)


# -- which decoder ----------------------------------------------------------------------------------------------------
Blocks = Iterator[tuple[Samples, int]]
"""``[S, channels]`` and the rate in Hz."""


def _opener(data: bytes) -> Callable[[bytes], Blocks]:
    """What decodes a file that begins so."""
    head = data[:12]
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        return lambda sound: _by_soundfile(sound, "WAV", "WAVEX")
    if head[:4] == b"fLaC":
        return lambda sound: _by_soundfile(sound, "FLAC")
    if head[:4] == b"OggS":
        return lambda sound: _by_soundfile(sound, "OGG")
    if head[:4] == b"\x1a\x45\xdf\xa3":
        return lambda sound: _by_ffmpeg(sound, "matroska")
    if head[4:8] == b"ftyp":
        return lambda sound: _by_ffmpeg(sound, "mov")
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return lambda sound: _by_ffmpeg(sound, "aac")
    if head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2):
        return lambda sound: _by_ffmpeg(sound, "mp3")  # mpg123 would write a line to stderr for every bad frame
    raise UnusableSoundError(
        f"The recording is empty; send {KNOWN}." if not data else f"This is no sound; send {KNOWN}."
    )


def _by_soundfile(data: bytes, *kinds: str) -> Blocks:
    with soundfile.SoundFile(io.BytesIO(data)) as file:
        if file.format not in kinds:
            raise UnusableSoundError(f"This is a file of another kind than its first bytes say; send {KNOWN}.")
        _check_shape(file.channels, file.samplerate)  # before a block of so many channels is made room for
        for block in file.blocks(BLOCK, dtype="float32", always_2d=True):
            yield block.astype(np.float32, copy=False), file.samplerate


def _by_ffmpeg(data: bytes, container: str) -> Blocks:
    options = {"protocol_whitelist": PROTOCOLS, "codec_whitelist": ",".join(CODECS)}
    with av.open(io.BytesIO(data), "r", format=container, options=options, metadata_errors="ignore") as file:
        stream = next(iter(file.streams.audio), None)
        if stream is None or stream.codec_context is None or stream.codec_context.name not in CODECS:
            raise UnusableSoundError(f"There is no sound in the file that can be read here; send {KNOWN}.")
        as_float: AudioResampler | None = None
        for packet in file.demux(stream):
            for frame in packet.decode():
                assert isinstance(frame, av.AudioFrame)
                _check_shape(frame.layout.nb_channels, frame.sample_rate)
                as_float = as_float or AudioResampler("flt", frame.layout, frame.sample_rate)
                for piece in as_float.resample(frame):
                    samples = piece.to_ndarray().reshape(-1, piece.layout.nb_channels)
                    yield samples.astype(np.float32, copy=False), piece.sample_rate


# -- what is let through ----------------------------------------------------------------------------------------------
class _Mixer:
    """Blocks of any shape -> one channel at ``rate_hz``, of at most ``most_s`` seconds."""

    def __init__(self, rate_hz: int, most_s: float) -> None:
        self._rate_hz, self._most_s = rate_hz, most_s
        self._from_hz = self._frames = self._bytes = 0
        self._resampler: soxr.ResampleStream | None = None
        self._parts: list[Samples] = []

    def push(self, block: Samples, block_hz: int) -> None:
        """More of it: ``[S, channels]``. Errors as for :func:`decode`."""
        _check_shape(block.shape[1], block_hz)
        if self._from_hz not in (0, block_hz):
            raise UnusableSoundError("The recording changes its sample rate on the way; export it again.")
        if not self._from_hz and block_hz != self._rate_hz:
            self._resampler = soxr.ResampleStream(block_hz, self._rate_hz, 1, dtype="float32")
        self._from_hz = block_hz
        self._frames += len(block)
        self._bytes += block.nbytes
        if self._frames > self._most_s * block_hz:
            raise TooMuchSoundError(f"The recording is longer than {self._most_s:g} seconds; send a part of it.")
        if self._bytes > MOST_DECODED:
            raise TooMuchSoundError(f"The recording holds more than {MOST_DECODED >> 20} MiB of samples.")
        mono = block.mean(1, dtype=np.float32)
        if not np.isfinite(mono).all():
            raise UnusableSoundError("The recording holds samples that are NaN or infinite; export it again.")
        self._take(np.clip(mono, -1, 1))

    def _take(self, mono: Samples, last: bool = False) -> None:
        self._parts.append(mono if self._resampler is None else self._resampler.resample_chunk(mono, last=last))

    def close(self) -> Samples:
        """All of it. Raises UnusableSoundError when there was none."""
        if not self._frames:
            raise UnusableSoundError("The recording holds no sound.")
        self._take(np.zeros(0, np.float32), last=True)
        return np.clip(np.concatenate(self._parts), -1, 1)


def _check_shape(channels: int, rate_hz: int) -> None:
    if not 1 <= channels <= MOST_CHANNELS:
        raise UnusableSoundError(f"The recording has {channels} channels; send one or two.")
    if not LOWEST_HZ <= rate_hz <= HIGHEST_HZ:
        raise UnusableSoundError(f"The recording is sampled at {rate_hz} Hz; send {LOWEST_HZ} to {HIGHEST_HZ} Hz.")
