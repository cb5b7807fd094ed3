"""Voices that were made of recordings: named, listed, deleted, and kept for the codec that they belong to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from speech_mtp.codecs.base import Codec
from speech_mtp.voices.reference import timbre_of
from speech_mtp.voices.shelf import Capacity, Record, Shelf

EVERYBODY = "everybody"
"""The owner of what has no owner."""


class NameTakenError(ValueError):
    """A voice of this name is there already."""


class SavedVoices:
    """The voices in ``folder`` for ``codec``; those of other codecs are not shown.

    A voice belongs to an owner: others neither see nor use it.
    """

    def __init__(self, folder: Path, codec: Codec, capacity: Capacity | None = None) -> None:
        self.codec, self._print = codec, fingerprint(codec)
        self.shelf = Shelf(folder / "voices", "voice", capacity or Capacity())
        self._timbres: dict[str, Tensor] = {}

    @property
    def sample_rate(self) -> int:
        """Hz of the codec's sound."""
        return self.codec.spec.sample_rate

    def of(self, owner: str = EVERYBODY) -> list[Record]:
        """The voices of ``owner``, the oldest first."""
        return [record for record in self.shelf.of(owner) if record.notes.get("codec") == self._print]

    def find(self, owner: str, voice: str) -> Record | None:
        """The voice of ``owner`` that has this id or name."""
        return next((record for record in self.of(owner) if voice in (record.id, record.name)), None)

    def timbre(self, owner: str, voice: str) -> Tensor | None:
        """``[E]`` of the voice of ``owner`` that has this id or name."""
        record = self.find(owner, voice)
        if record is None:
            return None
        if record.id not in self._timbres:
            tensor = self.shelf.tensor(record)
            if tensor is None or tensor.shape != (self.codec.spec.timbre_dim,) or not tensor.isfinite().all():
                return None
            self._timbres[record.id] = tensor
        return self._timbres[record.id]

    def make(
        self,
        owner: str,
        name: str,
        wave: Tensor,
        rate_hz: int,
        notes: Mapping[str, str] | None = None,
        keep_reference: bool = False,
    ) -> Record:
        """A voice of the recording ``wave [S]``, which itself is kept only if that is asked for (``reference``, 16
        bits). Raises NameTakenError, FullShelfError, and what :func:`timbre_of` raises."""
        timbre = timbre_of(self.codec, wave, rate_hz)
        if self.find(owner, name) is not None:
            raise NameTakenError(f"There is a voice {name!r} already; choose another name, or remove that one first.")
        kept = {"reference": (wave.clamp(-1, 1) * 32767).round().to(torch.int16)} if keep_reference else {}
        rate = {"reference_hz": str(rate_hz)} if keep_reference else {}
        return self.shelf.add(owner, name, {**(notes or {}), **rate, "codec": self._print}, timbre, kept)

    def forget(self, owner: str, voice: str) -> Record | None:
        """Delete the voice of ``owner`` that has this id or name; whoever is speaking with it speaks on."""
        record = self.find(owner, voice)
        if record is None or not self.shelf.remove(record):
            return None
        self._timbres.pop(record.id, None)
        return record


def fingerprint(codec: Codec) -> str:
    """What names the weights of ``codec``."""
    digest = hashlib.sha256()
    for name, tensor in sorted(codec.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
