"""Small things that people leave here and that outlive the program: one safetensors file each, in one folder.

A record belongs to who made it; nobody else sees it. Its file is named by its id, which is ours, so that nothing that a
client wrote is ever part of a path. Files are written aside and renamed, links are not followed, and what another
server writes into the same folder is seen too.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from speech_mtp.files import replacing

log = logging.getLogger("speech_mtp.voices")

SUFFIX = ".safetensors"
TENSOR = "value"
OWN = ("id", "owner", "name", "created_at")
"""Keys of a file's metadata that every record has."""


class FullShelfError(ValueError):
    """There are as many records, or bytes of them, as there may be."""


@dataclass(frozen=True)
class Capacity:
    """How much may lie on a shelf: records, of them of one owner, and bytes of all."""

    records: int = 1000
    of_one: int = 50
    num_bytes: int = 2**28
    record_bytes: int = 2**23


@dataclass(frozen=True)
class Record:
    """One thing. ``created_at``: seconds since 1970; ``notes``: what else is told of it; ``stamp`` changes with its
    file."""

    id: str
    owner: str
    name: str
    created_at: int
    notes: Mapping[str, str]
    num_bytes: int
    stamp: tuple[int, int]


class Shelf:
    """Records whose ids begin with ``prefix``, in ``folder``, which is made for the first of them.

    All methods may be called from any thread. They look at a file only when it has changed.
    """

    def __init__(self, folder: Path, prefix: str, capacity: Capacity) -> None:
        self.folder, self.prefix, self.capacity = folder, prefix, capacity
        self._id = re.compile(rf"{prefix}_[0-9a-f]{{24}}")
        self._records: dict[str, Record] = {}
        self._seen_ns = -1
        self._lock = Lock()

    # -- what there is --------------------------------------------------------------------------------------------
    def of(self, owner: str) -> list[Record]:
        """The records of ``owner``, the oldest first."""
        with self._lock:
            self._refresh()
            return [record for record in self._records.values() if record.owner == owner]

    def find(self, owner: str, record_id: str) -> Record | None:
        """The record of that id, if it is ``owner``'s."""
        return next((record for record in self.of(owner) if record.id == record_id), None)

    def tensor(self, record: Record) -> Tensor | None:
        """What it holds; None if it has gone meanwhile."""
        try:
            return load_file(self._path(record.id))[TENSOR]
        except (OSError, SafetensorError, KeyError):
            return None

    # -- what comes and goes --------------------------------------------------------------------------------------
    def add(
        self, owner: str, name: str, notes: Mapping[str, str], tensor: Tensor, more: Mapping[str, Tensor] | None = None
    ) -> Record:
        """A new record, ``more`` tensors lying beside the one that it is. Raises FullShelfError where there is no
        room."""
        with self._lock:
            self._refresh()
            self._check_room(owner)
            record_id = f"{self.prefix}_{secrets.token_hex(12)}"
            return self._write(record_id, owner, name, int(time.time()), notes, {TENSOR: tensor, **(more or {})})

    def rename(self, record: Record, name: str) -> Record | None:
        """``record`` by another name; None if it has gone meanwhile."""
        try:
            tensors = load_file(self._path(record.id))
        except (OSError, SafetensorError):
            return None
        with self._lock:
            return self._write(record.id, record.owner, name, record.created_at, record.notes, tensors)

    def remove(self, record: Record) -> bool:
        """Forget it; whether it was there."""
        with self._lock:
            self._records.pop(record.id, None)
            try:
                self._path(record.id).unlink()
            except FileNotFoundError:
                return False
            return True

    def _check_room(self, owner: str) -> None:
        mine = sum(record.owner == owner for record in self._records.values())
        if mine >= self.capacity.of_one:
            raise FullShelfError(f"There are {mine} of yours already, as many as one may have; remove one.")
        used = sum(record.num_bytes for record in self._records.values())
        if len(self._records) >= self.capacity.records or used >= self.capacity.num_bytes:
            raise FullShelfError("As many are kept as there may be; whoever runs this can make room.")

    # -- files ----------------------------------------------------------------------------------------------------
    def _path(self, record_id: str) -> Path:
        path = self.folder / f"{record_id}{SUFFIX}"
        assert self._id.fullmatch(record_id), record_id
        assert path.resolve().parent == self.folder.resolve(), path
        return path

    def _write(
        self,
        record_id: str,
        owner: str,
        name: str,
        created_at: int,
        notes: Mapping[str, str],
        tensors: Mapping[str, Tensor],
    ) -> Record:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(record_id)
        head = dict(zip(OWN, (record_id, owner, name, str(created_at)), strict=True))
        with replacing(path) as aside:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, aside, {**notes, **head})
        found = path.stat()
        stamp = (found.st_ino, found.st_mtime_ns)
        record = Record(record_id, owner, name, created_at, dict(notes), found.st_size, stamp)
        self._records[record_id] = record
        return record

    def _refresh(self) -> None:
        """Look at the folder, if something in it has changed."""
        try:
            changed_ns = self.folder.stat().st_mtime_ns
        except FileNotFoundError:
            self._records = {}
            return
        if changed_ns == self._seen_ns:
            return
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                record_id = entry.name.removesuffix(SUFFIX)
                if self._id.fullmatch(record_id) and entry.is_file(follow_symlinks=False):
                    found.append(self._known(record_id, entry) or self._read(record_id, entry))
        records = sorted((r for r in found if r is not None), key=lambda r: (r.created_at, r.id))
        self._records = {record.id: record for record in records}
        self._seen_ns = changed_ns

    def _known(self, record_id: str, entry: os.DirEntry[str]) -> Record | None:
        record = self._records.get(record_id)
        found = entry.stat(follow_symlinks=False)
        return record if record is not None and record.stamp == (found.st_ino, found.st_mtime_ns) else None

    def _read(self, record_id: str, entry: os.DirEntry[str]) -> Record | None:
        """What the file holds; None for one that is too large or damaged."""
        found = entry.stat(follow_symlinks=False)
        head: dict[str, str] = {}
        with contextlib.suppress(OSError, SafetensorError):
            if found.st_size <= self.capacity.record_bytes:
                with safe_open(entry.path, "pt") as file:
                    head = file.metadata() or {}
        if head.get("id") != record_id or not head.keys() >= set(OWN) or not head["created_at"].isdecimal():
            log.warning("the file %s is damaged and left out", entry.name)
            return None
        notes = {key: value for key, value in head.items() if key not in OWN}
        stamp = (found.st_ino, found.st_mtime_ns)
        return Record(record_id, head["owner"], head["name"], int(head["created_at"]), notes, found.st_size, stamp)
