"""The tab "Voices", what the API does not offer: a recording said again in another voice of the model.

The codec alone does it: the recording's content and prosody, with the other voice's timbre.
"""

from __future__ import annotations

import base64
import binascii
import threading
from typing import Any

import numpy as np
import soxr
import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from speech_mtp.serving.errors import ApiError
from speech_mtp.serving.service import VoiceService
from speech_mtp.voices.conversion import Converter

RATE = 24_000
"""Of the sound that the page sends and gets, 16 bits, mono."""
MOST_S = 15
LEAST_S = 0.3


class Asked(BaseModel):
    """``audio``: sound in base64."""

    model_config = ConfigDict(strict=True, extra="forbid")
    audio: str
    voice: str


class Timbre:
    """Says recordings again; one at a time, because each takes the processor whole."""

    def __init__(self, service: VoiceService) -> None:
        self._service = service
        self._one = threading.Lock()

    def swap(self, asked: Any, client: str) -> dict[str, Any]:
        """A recording in another voice that ``client`` may use: ``{"audio"}``, or ``{"error": sentence}``."""
        try:
            wanted = Asked.model_validate(asked)
            samples = np.frombuffer(base64.b64decode(wanted.audio, validate=True), np.int16)
        except (ValidationError, binascii.Error, ValueError):
            return {"error": "This is not a recording that can be read."}
        if not self._service.model.codec.spec.timbre_dim:
            return {"error": "The codec of this model has no timbre, so a recording cannot take another voice."}
        if not LEAST_S * RATE <= len(samples) <= MOST_S * RATE:
            return {"error": f"A recording must last from {LEAST_S} to {MOST_S} seconds."}
        try:
            voice = self._service.voice(client, wanted.voice)
            with self._one:
                said = self._said(samples.astype(np.float32) / 32768, voice)
        except ApiError as error:
            return {"error": error.message}
        return {"audio": base64.b64encode(said).decode("ascii")}

    def _said(self, wave: np.ndarray, voice: str | Tensor) -> bytes:
        model, rate = self._service.model, self._service.sample_rate
        converter = Converter(model.codec, model.timbre(voice)[0], block_s=MOST_S)
        heard = torch.from_numpy(soxr.resample(wave, RATE, rate)).float()
        spoken = torch.cat([converter.push(heard), converter.close()])
        sound = soxr.resample(spoken.numpy(), rate, RATE)
        return (sound.clip(-1, 1) * 32767).astype("<i2").tobytes()
