"""The audio formats of a realtime session: 16-bit PCM at 24 kHz, and the two of the telephone at 8 kHz."""

from __future__ import annotations

import base64
import binascii
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
import torch

from speech_mtp.serving.encoding import RATE, Shaper
from speech_mtp.serving.errors import ApiError

Samples = npt.NDArray[np.float32]


@dataclass(frozen=True)
class WireFormat:
    """One sample after the other, without a header. ``subtype`` is libsndfile's."""

    subtype: str
    rate: int
    bytes_per_sample: int

    def read(self, data: bytes) -> Samples:
        """``data``, whole samples -> ``[S]`` in [-1, 1]."""
        if not data:
            return np.zeros(0, np.float32)
        shape = {"samplerate": self.rate, "channels": 1, "subtype": self.subtype, "endian": "LITTLE", "format": "RAW"}
        found, _ = soundfile.read(io.BytesIO(data), dtype="float32", **shape)
        samples: Samples = found
        return samples

    def seconds(self, data: bytes) -> float:
        """How long ``data`` sounds."""
        return len(data) / self.bytes_per_sample / self.rate

    def write(self, samples: Samples) -> bytes:
        """``samples [S]`` -> bytes."""
        file = io.BytesIO()
        soundfile.write(file, samples, self.rate, self.subtype, "LITTLE", "RAW")
        return file.getvalue()


WIRE = {
    "audio/pcm": WireFormat("PCM_16", RATE, 2),
    "audio/pcmu": WireFormat("ULAW", 8000, 1),
    "audio/pcma": WireFormat("ALAW", 8000, 1),
}


def wire(format_: dict[str, Any]) -> WireFormat:
    """Of the format of a session's settings."""
    return WIRE[format_["type"]]


def unpacked(data: Any, where: str) -> bytes:
    """Bytes that came as base64. Raises ApiError 400 for what is not that."""
    if not isinstance(data, str):
        raise ApiError(400, "The audio must be a text in base64.", where, "invalid_value")
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "The audio is not base64.", where, "invalid_value") from None


class Receiver:
    """A stream of bytes in one format -> samples at ``rate``. Half a sample waits for its other half."""

    def __init__(self, wire_format: WireFormat, rate: int) -> None:
        self.format = wire_format
        self._rate = soxr.ResampleStream(wire_format.rate, rate, 1, dtype="float32", quality="MQ")
        self._rest = b""

    def push(self, data: bytes) -> Samples:
        """The samples that are sure now."""
        data = self._rest + data
        whole = len(data) - len(data) % self.format.bytes_per_sample
        self._rest = data[whole:]
        return self._rate.resample_chunk(self.format.read(data[:whole]))


class Sender:
    """Waves of a codec -> bytes of one format, ``speed`` times as fast."""

    def __init__(self, wire_format: WireFormat, sample_rate: int, speed: float) -> None:
        self.format = wire_format
        self._shape = Shaper(sample_rate, speed)
        self._rate = None
        if wire_format.rate != RATE:
            self._rate = soxr.ResampleStream(RATE, wire_format.rate, 1, dtype="float32")

    def push(self, wave: torch.Tensor) -> bytes:
        """``wave [S]`` -> the bytes that are sure now."""
        return self._written(self._shape.push(wave.numpy()), False)

    def close(self) -> bytes:
        """The rest."""
        return self._written(self._shape.close(), True)

    def _written(self, samples: Samples, last: bool) -> bytes:
        if self._rate is not None:
            samples = self._rate.resample_chunk(samples, last=last)
        return self.format.write(np.clip(samples, -1, 1)) if len(samples) else b""
