"""The folder is the registry: ``{name: medusa, ...}`` of family ``heads`` means ``speech_mtp/heads/medusa.py``.

A file is a plug-in when it defines a public class that inherits, directly or not, from something of its own
family (usually a class of the family's ``base.py``). Among several, the one named like the module counts. In a
family without ``base.py`` the class named like the module is the plug-in. Names are compared without case and
underscores, so that ``fast_mtp.py`` may hold ``FastMTP``.

Looking a name up parses source files and imports only the module asked for, so that listing a family never
needs an optional package. This module knows no family by name.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = "speech_mtp"


class MissingExtra(ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package, e.g. ``require("onnxruntime", "offline")``.

    Raises :class:`MissingExtra` when it, or something that it needs itself, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"The package {error.name or module!r} is not installed; install it with pip install 'speech-mtp[{extra}]'."
        ) from error


def locate(module: str, extra: str) -> Path:
    """The folder of an optional package, which is not imported. Raises :class:`MissingExtra` when it is not there."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise MissingExtra(
            f"The package {module!r} is not installed; install it with pip install 'speech-mtp[{extra}]'."
        )
    return Path(spec.origin).parent


def nearest(word: str, choices: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the closest of ``choices``, then all of them."""
    known = sorted(choices)
    if not known:
        return "there is none to choose from"
    close = difflib.get_close_matches(word.casefold(), known, n=1, cutoff=0.5)
    listing = f"known: {', '.join(known)}"
    return f"did you mean {close[0]!r}? ({listing})" if close else listing


def names(family: str) -> list[str]:
    """The plug-ins of a family, sorted: ``names("corpus.teachers")``. Imports none of them."""
    return sorted(name for name, path in _modules(family).items() if _candidates(family, path))


def build(family: str, spec: str | Mapping[str, Any], **more: Any) -> Any:
    """Construct the plug-in that ``spec`` names.

    ``spec`` is a name, or a mapping of ``name`` and the constructor's arguments; ``name`` may also be
    ``package.module:Class`` for a class that lives elsewhere. ``more`` are arguments that the caller supplies
    (sizes, devices), which a spec may therefore not set.

    Raises ``ValueError`` for an unknown plug-in or argument (naming the nearest), for an argument that is given
    twice, and for one that is missing.
    """
    given = {"name": spec} if isinstance(spec, str) else dict(spec)
    name = given.pop("name", None)
    if not isinstance(name, str) or not name:
        raise ValueError(f"A plug-in of {family} needs its name, as in {{name: {next(iter(names(family)), '...')}}}.")
    twice = sorted(given.keys() & more.keys())
    if twice:
        raise ValueError(f"{family} {name!r}: {', '.join(twice)} is set by the program; remove it from the settings.")
    cls = find(family, name)
    arguments = {**given, **more}
    _check_arguments(family, name, cls, arguments)
    return cls(**arguments)


def find(family: str, name: str) -> type[Any]:
    """The class that ``name`` means in ``family``, without constructing it. Errors as for :func:`build`."""
    if ":" in name:
        return _outsider(family, name)
    module = name.replace("-", "_")
    path = _modules(family).get(module)
    found = _candidates(family, path) if path else []
    if not found:
        raise ValueError(f"There is no {name!r} in {family}; {nearest(module, names(family))}.")
    if len(found) > 1:
        raise ValueError(
            f"{family}/{module}.py defines {', '.join(found)}; "
            "name one of them like the module, or make the others private."
        )
    cls: type[Any] = getattr(importlib.import_module(f"{ROOT}.{family}.{module}"), found[0])
    return cls


def _outsider(family: str, name: str) -> type[Any]:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        raise ValueError(f"{family} {name!r} cannot be imported: there is no module {error.name!r}.") from error
    if not inspect.isclass(found):
        raise ValueError(f"{family} {name!r}: the module {module} has no class {attribute!r}.")
    return found


def _check_arguments(family: str, name: str, cls: type[Any], arguments: Mapping[str, Any]) -> None:
    parameters = inspect.signature(cls).parameters.values()
    valid = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for key in arguments:
            if key not in valid:
                raise ValueError(f"{family} {name!r} has no setting {key!r}; {nearest(key, valid)}.")
    needed = [p.name for p in parameters if p.name in valid and p.default is p.empty and p.name not in arguments]
    if needed:
        raise ValueError(f"{family} {name!r} needs {', '.join(needed)}; add it to the settings.")


def _folder(family: str) -> Path:
    try:
        spec = importlib.util.find_spec(f"{ROOT}.{family}")
    except ModuleNotFoundError:
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"There is no plug-in family {family!r}.")
    return Path(next(iter(spec.submodule_search_locations)))


def _modules(family: str) -> dict[str, Path]:
    return {p.stem: p for p in _folder(family).glob("*.py") if p.stem != "base" and not p.stem.startswith("_")}


def _candidates(family: str, path: Path) -> list[str]:
    """Names of the plug-in classes that the file at ``path`` defines: one, unless the file is ambiguous or none."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    origin = _imported(tree, f"{ROOT}.{family}")
    classes = {node.name: [_dotted(b) for b in node.bases] for node in tree.body if isinstance(node, ast.ClassDef)}

    def inherits(bases: list[str]) -> bool:
        return any(inherits(classes[b]) if b in classes else b.partition(".")[0] in origin for b in bases)

    public = [name for name in classes if not name.startswith("_")]
    same = [name for name in public if _fold(name) == _fold(path.stem)]
    if not (path.parent / "base.py").exists():
        return same
    found = [name for name in public if inherits(classes[name])]
    return [name for name in same if name in found] or found


def _imported(tree: ast.Module, package: str) -> set[str]:
    """Local names that the module imports from ``package`` or below it."""
    froms = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    inside = [node for node in froms if node.module == package or (node.module or "").startswith(package + ".")]
    return {alias.asname or alias.name for node in inside for alias in node.names}


def _dotted(base: ast.expr) -> str:
    return ast.unparse(base.value if isinstance(base, ast.Subscript) else base)


def _fold(name: str) -> str:
    return name.replace("_", "").casefold()
