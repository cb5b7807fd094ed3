"""Voices that clients have made of recordings, and the consents of who was recorded.

A voice is a vector of the codec's, so it belongs to one codec; those of another are not shown. It belongs to the key
that made it: others neither see nor use it. Without keys everybody has everything in common.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from speech_mtp.codecs.base import Codec
from speech_mtp.serving.errors import ApiError
from speech_mtp.serving.shelf import Capacity, FullShelfError, Record, Shelf
from speech_mtp.serving.sound_in import Samples

MOST_SECONDS = 60.0
"""Of the recording of a voice, or of a consent."""
LEAST_SECONDS = 1.0
LEAST_LEVEL = 1e-3
"""A recording that is never louder than this (-60 dB) is silence."""
CONSENT_RATE = 16_000
EVERYBODY = "everybody"
OF_A_KEY = "key "
"""How the door calls clients that have one."""


def owner_of(client: str) -> str:
    """Whose the things are that ``client``, as the door calls it, leaves here."""
    return client if client.startswith(OF_A_KEY) else EVERYBODY


class Voices:
    """What lies in ``folder`` for ``codec``."""

    def __init__(self, folder: Path, codec: Codec, capacity: Capacity) -> None:
        self.codec, self._print = codec, fingerprint(codec)
        self.made = Shelf(folder / "voices", "voice", capacity)
        self.consents = Shelf(folder / "consents", "cons", capacity)
        self._timbres: dict[str, Tensor] = {}

    @property
    def sample_rate(self) -> int:
        """Hz of the recordings of which voices are made."""
        return self.codec.spec.sample_rate

    # -- voices ---------------------------------------------------------------------------------------------------
    def of(self, owner: str) -> list[Record]:
        """The voices of ``owner``."""
        return [record for record in self.made.of(owner) if record.notes.get("codec") == self._print]

    def find(self, owner: str, voice: str) -> Record | None:
        """The voice of ``owner`` that has this id or name."""
        return next((record for record in self.of(owner) if voice in (record.id, record.name)), None)

    def timbre(self, owner: str, voice: str) -> Tensor | None:
        """``[E]`` of the voice of ``owner`` that has this id or name."""
        record = self.find(owner, voice)
        if record is None:
            return None
        if record.id not in self._timbres:
            tensor = self.made.tensor(record)
            if tensor is None or tensor.shape != (self.codec.spec.timbre_dim,) or not tensor.isfinite().all():
                return None
            self._timbres[record.id] = tensor
        return self._timbres[record.id]

    def make(self, owner: str, name: str, consent: str, samples: Samples) -> Record:
        """A voice of ``samples [S]`` at :attr:`sample_rate`. Raises ApiError 400 for a recording that makes none."""
        check_audible(samples, self.sample_rate, "audio_sample")
        device = next(self.codec.parameters()).device
        timbre = self.codec.encode(torch.from_numpy(samples).to(device)[None, None]).timbre
        assert timbre is not None
        notes = {"codec": self._print, "consent": consent}
        if self.find(owner, name) is not None:
            raise name_taken()
        return _added(self.made, owner, name, notes, timbre[0].float().cpu().clone())

    def forget(self, owner: str, voice: str) -> Record | None:
        """Delete the voice of ``owner`` that has this id or name; whoever is speaking with it speaks on."""
        record = self.find(owner, voice)
        if record is None or not self.made.remove(record):
            return None
        self._timbres.pop(record.id, None)
        return record

    # -- consents -------------------------------------------------------------------------------------------------
    def consent(self, owner: str, name: str, language: str, samples: Samples) -> Record:
        """The consent that is spoken in ``samples [S]`` at :data:`CONSENT_RATE`. Raises ApiError 400 for silence."""
        check_audible(samples, CONSENT_RATE, "recording")
        levels = torch.from_numpy(np.rint(samples * 32767).astype(np.int16))
        return _added(self.consents, owner, name, {"language": language}, levels)


def fingerprint(codec: Codec) -> str:
    """What names the weights of ``codec``."""
    digest = hashlib.sha256()
    for name, tensor in sorted(codec.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def check_audible(samples: Samples, rate_hz: int, param: str) -> None:
    """Raise ApiError 400 for a recording that is too short, or silent."""
    if len(samples) < LEAST_SECONDS * rate_hz:
        raise ApiError(400, f"The recording is shorter than {LEAST_SECONDS:g} second; send more of it.", param)
    if np.abs(samples).max() < LEAST_LEVEL:
        raise ApiError(400, "The recording is silent; send one with a voice in it.", param)


def name_taken() -> ApiError:
    """What whoever wants a name is told that a voice has already."""
    return ApiError(400, "A voice of this name is there already; choose another name.", "name", "name_taken")


def _added(shelf: Shelf, owner: str, name: str, notes: dict[str, str], tensor: Tensor) -> Record:
    try:
        return shelf.add(owner, name, notes, tensor)
    except FullShelfError as error:
        raise ApiError(400, str(error), code="limit_reached") from None
