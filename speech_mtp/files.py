"""Files that are either there whole or not there at all, and files that grow by whole records."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO


def cache_folder() -> Path:
    """``$SPEECH_MTP_CACHE``, else ``speech_mtp`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    own = os.environ.get("SPEECH_MTP_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "speech_mtp"


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
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # some libraries put a file of their own in its place, which others may not read
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


def check_inputs_of(path: Path, inputs: dict[str, Any], made: bool = True) -> None:
    """Keep at ``path`` what something is made of, as JSON; ``inputs`` that differ from those kept raise ``ValueError``,
    which names the first. What was kept is forgotten where nothing was ``made`` of it."""
    if not made:
        path.unlink(missing_ok=True)
    try:
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove {path.parent}, or give another folder (out).") from error
    given = json.loads(json.dumps(inputs))
    if kept is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(given, indent=1), encoding="utf-8")
    elif kept != given:
        name = next(name for name in {**kept, **given} if kept.get(name) != given.get(name))
        raise ValueError(
            f"{path.parent} was made with {name} {kept.get(name)!r}, not {given.get(name)!r}; give another folder "
            "(out), or remove it."
        )
