"""Voices that were made of recordings: named, listed, deleted, and kept for the codec that they belong to."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from speech_mtp.codecs.base import Codec
from speech_mtp.voices.reference import check_timbre, reference_of
from speech_mtp.voices.shelf import Capacity, Record, Shelf

EVERYBODY = "everybody"
"""The owner of what has no owner."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAME_RULE = "a name is 1 to 64 letters, digits, dots, - and _, the first of them a letter or digit"


class NameTakenError(ValueError):
    """A voice of this name is there already."""


class SavedVoices:
    """The voices in ``folder`` for ``codec``; those of other codecs are not shown.

    A voice belongs to an owner: others neither see nor use it. What belongs to everybody all may use, and its owner
    alone deletes.
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
        """The voices that ``owner`` may use: its own, the oldest first, then everybody's."""
        everybodys = self.shelf.of(EVERYBODY) if owner != EVERYBODY else []
        return [r for r in [*self.shelf.of(owner), *everybodys] if r.notes.get("codec") == self._print]

    def of_other_codecs(self, owner: str = EVERYBODY) -> list[Record]:
        """The voices of ``owner`` that this codec cannot speak with."""
        return [record for record in self.shelf.of(owner) if record.notes.get("codec") != self._print]

    def find(self, owner: str, voice: str) -> Record | None:
        """The voice that has this id or name and that ``owner`` may use."""
        return next((record for record in self.of(owner) if voice in (record.id, record.name)), None)

    def timbre(self, owner: str, voice: str) -> Tensor | None:
        """``[E]`` of the voice that has this id or name and that ``owner`` may use."""
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
        """A voice of the recording ``wave [S]``. The speech that it is made of is kept (``reference``, 16 bits, at the
        codec's rate) only if that is asked for.

        Raises ValueError for a name that is none, NameTakenError, FullShelfError, and what
        :func:`speech_mtp.voices.reference.timbre_of` raises.
        """
        if NAME.fullmatch(name) is None:
            raise ValueError(f"A voice cannot be called {name!r}; {NAME_RULE}.")
        check_timbre(self.codec)
        reference = reference_of(wave, rate_hz, self.sample_rate)
        if self.find(owner, name) is not None:
            raise NameTakenError(f"There is a voice {name!r} already; choose another name, or remove that one first.")
        kept = {"reference": (reference.speech * 32767).round().to(torch.int16)} if keep_reference else {}
        return self.shelf.add(owner, name, {**(notes or {}), "codec": self._print}, reference.timbre(self.codec), kept)

    def forget(self, owner: str, voice: str) -> Record | None:
        """Delete the voice of ``owner`` that has this id or name, be it of another codec; whoever is speaking with it
        speaks on."""
        mine = [record for record in self.shelf.of(owner) if voice in (record.id, record.name)]
        record = min(mine, key=lambda found: found.notes.get("codec") != self._print, default=None)
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
