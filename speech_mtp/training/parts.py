"""A long job in parts, each a folder that is there whole or not at all: a killed job goes on with the missing ones.

``out/parts-DIGEST`` holds the parts while the job is going on, ``out/made.json`` the digest of its inputs and its
report when it is done. Another input has another digest, so parts of two inputs never mix. The version of the package
is an input too; after a change of code alone, remove ``out`` to make it anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import speech_mtp
from speech_mtp.files import replacing
from speech_mtp.progress import progress
from speech_mtp.storage import new_folder

MADE = "made.json"


class Parts:
    """The parts of the job that makes ``out`` from ``inputs``, any JSON."""

    def __init__(self, out: Path, inputs: Any) -> None:
        text = json.dumps([speech_mtp.__version__, inputs], ensure_ascii=False)
        self.out, self.digest = out, hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder = out / f"parts-{self.digest}"

    def report(self) -> dict[str, Any] | None:
        """What :meth:`finish` was given, if this job is done already."""
        if not (self.out / MADE).is_file():
            return None
        made = json.loads((self.out / MADE).read_text(encoding="utf-8"))
        report: dict[str, Any] = made["report"]
        return report if made["digest"] == self.digest else None

    def make(self, count: int, write: Callable[[int, Path], None], title: str) -> list[Path]:
        """The folders of all parts; ``write(number, folder)`` fills each of the ``count`` that is missing.

        What an earlier job has made in ``out`` no longer counts as complete.
        """
        (self.out / MADE).unlink(missing_ok=True)
        paths = [self.folder / f"{number:06d}" for number in range(count)]
        for number, path in enumerate(progress(paths, title, "part")):
            if not path.is_dir():
                with new_folder(path) as aside:
                    write(number, aside)
        return paths

    def finish(self, report: dict[str, Any]) -> dict[str, Any]:
        """Say that ``out`` is complete, and remove the parts of this job and of any that was given up."""
        with replacing(self.out / MADE) as path:
            path.write_text(json.dumps({"digest": self.digest, "report": report}), encoding="utf-8")
        for folder in self.out.glob("parts-*"):
            shutil.rmtree(folder)
        return report
