"""The standard library of the interpreter that runs: source code and prose that are on every machine."""

from __future__ import annotations

import ast
import inspect
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from speech_mtp.corpus.documents.base import Document, DocumentSource
from speech_mtp.plugins import nearest

LEFT_OUT = {"site-packages", "test", "tests", "idle_test", "encodings", "__pycache__"}
"""Folders whose files are other people's, tests (as much as all the rest), or tables of characters."""
PARTS = ("code", "docstrings")


class Stdlib(DocumentSource):
    """``parts``: ``code`` is every file as it is, ``docstrings`` those of a file without its code. Both of a file have
    the same key."""

    def __init__(self, parts: list[str] | None = None) -> None:
        self.parts = list(PARTS) if parts is None else parts
        for part in self.parts:
            if part not in PARTS:
                raise ValueError(f"The standard library has no part {part!r}; {nearest(part, PARTS)}.")
        # With the version, so that the licence tells the text of one interpreter from that of another.
        self.licence = f"Python {platform.python_version()} standard library, PSF License Version 2"

    def documents(self) -> Iterator[Document]:
        root = Path(sysconfig.get_paths()["stdlib"])
        for path in sorted(root.rglob("*.py")):
            name = path.relative_to(root)
            if LEFT_OUT & set(name.parts):
                continue
            code = path.read_text(encoding="utf-8", errors="replace")
            if "code" in self.parts:
                yield Document(name.as_posix(), code)
            if "docstrings" in self.parts:
                yield Document(name.as_posix(), docstrings(code))


def docstrings(code: str) -> str:
    """The docstrings of a module, its classes and functions, in order; of what cannot be parsed nothing."""
    try:
        tree = ast.parse(code)
    except SyntaxError:  # templates and examples of faults
        return ""
    holders = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = sorted(
        (node for node in ast.walk(tree) if isinstance(node, holders)), key=lambda n: getattr(n, "lineno", 0)
    )
    found = (ast.get_docstring(node, clean=False) for node in nodes)
    return "\n\n".join(inspect.cleandoc(text) for text in found if text)
