"""Files that are either there whole or not there at all, and files that grow by whole records."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` (same suffix); rename it to ``path`` when the block succeeds.

    When the block fails nothing is left behind and an older file stays as it was. Links are followed.
    Raises ``OSError`` with one sentence when the folder is missing or cannot be written, and when ``path`` is a
    folder or a device.
    """
    target = Path(os.path.realpath(path))
    if target.exists() and not target.is_file():
        raise OSError(f"Cannot write {os.fspath(path)}: it is not a regular file; give another name.")
    if not target.parent.is_dir():
        raise OSError(f"Cannot write {os.fspath(path)}: there is no folder {target.parent}; create it first.")
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}{target.suffix}")
    try:
        temporary.touch()
        yield temporary
        temporary.replace(target)
    except OSError as error:
        raise OSError(f"Cannot write {os.fspath(path)}: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def open_at(path: Path, size: int) -> BinaryIO:
    """``path`` (made if it is not there) for writing behind its first ``size`` bytes; what follows them is cut off."""
    path.touch()
    file = path.open("r+b")
    file.truncate(size)
    file.seek(size)
    return file
