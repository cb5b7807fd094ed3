"""Recordings of one's own -> the same manifest and audio that teachers make: in parallel, and going on after a kill.

1. every source lists its recordings, 2. those that the journal holds are left out, 3. worker processes turn each
into utterances (:mod:`speech_mtp.corpus.recorded`), 4. rows are written, then the journal's line.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from speech_mtp import hub, plugins
from speech_mtp.corpus.manifest import (
    MANIFEST,
    REJECTS,
    JsonLines,
    ManifestEntry,
    Reject,
    as_line,
    read_lines,
    read_manifest,
    read_rejects,
)
from speech_mtp.corpus.processes import in_processes
from speech_mtp.corpus.recorded import Imported, RecordingJob, Treatment, import_recording
from speech_mtp.corpus.recordings.base import RecordingSource, Unusable
from speech_mtp.progress import Progress

JOURNAL = "recordings.jsonl"
"""One line for each recording whose rows are written."""


class RecordingPlan(BaseModel):
    """A ``source`` (plug-in name, or a mapping with ``name``), the ``name`` that its voices begin with, and the
    ``licence`` of its recordings.

    ``credit`` is what the licence asks to be said. ``dev_fraction`` of the texts are held out where the source has no
    splits of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(pattern=r"^[A-Za-z0-9_]+$")
    source: str | dict[str, Any]
    licence: str = Field(min_length=1)
    credit: str = ""
    dev_fraction: float = Field(default=0.0, ge=0, le=1)

    def open(self) -> RecordingSource:
        """The source itself. Raises as its constructor does."""
        source: RecordingSource = plugins.build("corpus.recordings", self.source)
        return source


def import_recordings(plans: list[RecordingPlan], treatment: Treatment, workers: int) -> None:
    """Add what is missing of ``plans`` to the corpus in ``treatment.out``.

    Raises ``ValueError`` or ``FileNotFoundError`` for a source or aligner that cannot be used, before anything is
    made; a recording that cannot be used is a reject.
    """
    sources = [(plan, plan.open()) for plan in plans]
    hub.load_aligner(treatment.aligner)
    names = (MANIFEST, REJECTS, JOURNAL)
    with ExitStack() as stack:
        log = _Log(treatment.out, *(stack.enter_context(JsonLines(treatment.out / name)) for name in names))
        progress, audio_s = Progress("corpus", "recordings"), 0.0
        jobs = ((job, treatment) for plan, source in sources for job in log.missing(plan, source))
        for imported in in_processes(import_recording, jobs, workers):
            log.write(imported)
            audio_s += sum(row.seconds for row in imported.items if isinstance(row, ManifestEntry))
            progress.advance(1, f"{audio_s / 3600:.2f} h")
        progress.close()


class _Log:
    """Manifest, rejects and journal of a corpus. The journal is written last, so it names no recording that is only
    half there."""

    def __init__(self, out: Path, manifest: JsonLines, rejects: JsonLines, journal: JsonLines) -> None:
        self._manifest, self._rejects, self._journal = manifest, rejects, journal
        self._known = {row.id for row in read_manifest(out)} | {reject.id for reject in read_rejects(out)}
        self._finished = {line["id"] for line in read_lines(out / JOURNAL)}

    def missing(self, plan: RecordingPlan, source: RecordingSource) -> Iterator[RecordingJob]:
        """What is not finished. Entries that are no recording, and ids that come again, are rejected at once."""
        seen: dict[str, int] = {}
        for entry in source.recordings():
            speaker = "" if isinstance(entry, Unusable) else entry.speaker
            voice = f"{plan.name}-{_safe(speaker)}" if speaker else plan.name
            id = f"{voice}-{_safe(entry.key)}"
            seen[id] = seen.get(id, 0) + 1
            if isinstance(entry, Unusable):
                self._keep([Reject(id, entry.text, voice, "unusable entry", entry.reason)])
            elif seen[id] > 1:
                detail = f"The id {entry.key!r} is there {seen[id]} times; only the first is taken."
                self._keep([Reject(f"{id}#{seen[id]}", entry.text, voice, "duplicate id", detail)])
            elif id not in self._finished:
                yield RecordingJob(id, voice, entry, plan.name, plan.licence, plan.dev_fraction)

    def write(self, imported: Imported) -> None:
        """Add the rows and rejects of one recording, and that it is finished."""
        self._keep(imported.items)
        self._journal.append([{"id": imported.id, "seconds": round(imported.seconds, 3)}])

    def _keep(self, items: Sequence[ManifestEntry | Reject]) -> None:
        """Write what an earlier run, killed before its journal's line, has not written."""
        new = [item for item in items if item.id not in self._known]
        self._manifest.append(as_line(item) for item in new if isinstance(item, ManifestEntry))
        self._rejects.append(as_line(item) for item in new if isinstance(item, Reject))
        self._known |= {item.id for item in new}


def notice(plans: list[RecordingPlan]) -> str:
    """What to say about the recordings wherever something made of them is given away."""
    entries = (f"{plan.name}\n  licence: {plan.licence}\n" + f"  {plan.credit}\n" * bool(plan.credit) for plan in plans)
    return "This corpus holds recordings by others.\n\n" + "\n".join(entries)


def _safe(name: str) -> str:
    """``name`` as part of a file's name; where it had to be changed, a hash keeps it apart from others."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", name)
    return plain if plain == name else f"{plain[:40]}-{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"
