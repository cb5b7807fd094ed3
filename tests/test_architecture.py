"""What may import what: the layers (import-linter, see pyproject.toml) and the edges to other people's packages."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import speech_mtp
from speech_mtp import plugins

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "speech_mtp"
PYTHON = sorted(path for folder in ("speech_mtp", "demo", "recipes") for path in (ROOT / folder).rglob("*.py"))

# package -> the only files and folders that may import it
EDGES = {
    "transformers": [
        "speech_mtp/lm/backbone.py",
        "speech_mtp/lm/cache.py",
        "speech_mtp/codecs/",
        "speech_mtp/hub/backbones.py",
        "speech_mtp/frontends/",
        "speech_mtp/evaluation/peers.py",
        "speech_mtp/exports/",
    ],
    "fastapi": ["speech_mtp/serving/", "demo/"],
    "uvicorn": ["speech_mtp/serving/"],
    "gradio": ["demo/"],
    "accelerate": ["speech_mtp/training/"],
    "piper": [],  # GPL: run as a program, never imported
    "pickle": [],  # weights are safetensors
}

# What the demo's page stands on besides the public doors: it is mounted on the service, and its tab Text watches
# decoding step by step.
OF_THE_DEMO = (
    "speech_mtp.decoding.",
    "speech_mtp.heads.base.",
    "speech_mtp.hub",
    "speech_mtp.lm.chat.",
    "speech_mtp.lm.text_lm.",
    "speech_mtp.serving.",
    "speech_mtp.types.",
    "speech_mtp.voices.",
)


def imported(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything that a file imports, also lazily by name with ``require`` and ``import_module``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("require", "import_module", "__import__"):
                yield str(node.args[0].value)


def trespasses(path: str, text: str) -> list[str]:
    tops = {name.partition(".")[0] for name in imported(ast.parse(text))}
    return [
        f"{path} imports {package}"
        for package, allowed in EDGES.items()
        if package in tops and not any(path == a or (a.endswith("/") and path.startswith(a)) for a in allowed)
    ]


def test_other_packages_are_imported_only_where_they_may() -> None:
    assert PYTHON
    found = [edge for path in PYTHON for edge in trespasses(path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))]
    assert found == []


@pytest.mark.parametrize(
    "text",
    ["import transformers", "def f():\n  from transformers.cache_utils import Cache", "require('transformers', 'x')"],
)
def test_the_edge_test_sees_every_way_to_import(text: str) -> None:
    assert trespasses("speech_mtp/heads/medusa.py", text) == ["speech_mtp/heads/medusa.py imports transformers"]
    assert trespasses("speech_mtp/lm/backbone.py", text) == []


def test_weights_are_never_unpickled() -> None:
    calls = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in PYTHON
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("load", "save") and ast.unparse(node.value) == "torch"
    ]
    assert calls == []


def test_demo_and_recipes_use_the_public_doors_only() -> None:
    names = "|".join(speech_mtp.__all__)
    doors = re.compile(rf"speech_mtp(\.({names}|cli.*|serving(\.app(\.create_app)?|\.settings\.\w+)?))?")
    found = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in PYTHON
        if PACKAGE not in path.parents
        for name in imported(ast.parse(path.read_text("utf-8")))
        if name.partition(".")[0] == "speech_mtp" and not doors.fullmatch(name)
        if not (ROOT / "demo" in path.parents and name.startswith(OF_THE_DEMO))
    ]
    assert found == []


def test_the_layers_hold() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()", "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_contract_names_the_layers_of_the_architecture() -> None:
    layers = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"][0]
    assert [re.findall(r"\w+", line) for line in layers["layers"]] == [
        ["cli"],
        ["serving"],
        ["config"],
        ["training"],
        ["corpus", "streaming", "evaluation", "exports", "frontends"],
        ["hub"],
        ["objectives", "decoding"],
        ["lm", "heads"],
        ["voices"],
        ["codecs", "layouts"],
        ["types", "dtypes", "plugins", "files", "progress", "storage", "threads", "audio", "native", "text", "nn"],
    ]
    assert layers["exhaustive"] is True


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, speech_mtp, speech_mtp.plugins; sys.exit(any(m in sys.modules for m in ('torch', 'pydantic')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("name", speech_mtp.__all__)
def test_public_names_are_found_in_their_home(name: str) -> None:
    assert getattr(speech_mtp, name).__name__ == name.removesuffix("_text")
    assert name in dir(speech_mtp)


def test_other_names_are_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        speech_mtp.nothing  # noqa: B018


def test_every_extra_that_the_code_asks_for_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    asked = {
        node.args[1].value
        for path in PYTHON
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(plugins.require.__name__)
        if len(node.args) == 2 and isinstance(node.args[1], ast.Constant)
    }
    assert asked <= extras.keys()
