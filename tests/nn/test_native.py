"""The compiled library: made once, and done without where it cannot be had."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from speech_mtp import native
from speech_mtp.nn import blocks
from speech_mtp.nn.blocks import is_native
from tests.nn.test_blocks import needs_kernels


def fresh(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("SPEECH_MTP_CACHE", str(cache))
    monkeypatch.delenv(native.VARIABLE, raising=False)


def small_source(monkeypatch: pytest.MonkeyPatch, folder: Path, body: str) -> None:
    """The kernels are a single function from now on, which is compiled in no time."""
    source = folder / "small.c"
    source.write_text(f"int smtp_number(void) {{ {body} }}\n", encoding="utf-8")
    monkeypatch.setattr(native, "SOURCE", source)


@pytest.mark.skipif(
    shutil.which("gcc") is None or os.environ.get(native.VARIABLE) == "0", reason="there is no compiler, or none wanted"
)
def test_where_there_is_a_compiler_the_kernels_are_there_and_right() -> None:
    """Else all that needs them would be skipped, and nobody would notice."""
    assert is_native()


def test_kernels_that_give_wrong_numbers_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda: object())
    monkeypatch.setattr(blocks, "_agrees", lambda kind, rows: (kind, rows) != ("q8", 11))
    with pytest.warns(RuntimeWarning, match="wrong numbers on this processor"):
        assert not is_native.__wrapped__()


@needs_kernels
def test_it_is_compiled_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fresh(monkeypatch, tmp_path)
    small_source(monkeypatch, tmp_path, "return 3;")
    for _ in range(2):
        assert native.load.__wrapped__().smtp_number() == 3
    assert len(list((tmp_path / "native").iterdir())) == 1
    assert capsys.readouterr().err.count("Compiling fast kernels") == 1


@needs_kernels
def test_another_source_is_another_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh(monkeypatch, tmp_path)
    for number in (3, 4):
        small_source(monkeypatch, tmp_path, f"return {number};")
        assert native.load.__wrapped__().smtp_number() == number
    assert len(list((tmp_path / "native").iterdir())) == 2


@needs_kernels
def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "native").write_text("a file in the way of the folder", encoding="utf-8")
    fresh(monkeypatch, tmp_path)
    small_source(monkeypatch, tmp_path, "return 5;")
    assert native.load.__wrapped__().smtp_number() == 5


def test_without_a_compiler_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh(monkeypatch, tmp_path)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert native.load.__wrapped__() is None


def test_a_compiler_that_fails_is_named_in_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh(monkeypatch, tmp_path)
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'no such target' >&2\nexit 1\n", encoding="utf-8")
    broken.chmod(0o755)
    monkeypatch.setenv("CC", str(broken))
    with pytest.warns(RuntimeWarning, match="torch computes instead: no such target"):
        assert native.load.__wrapped__() is None
    assert not list((tmp_path / "native").iterdir())


def test_without_a_home_folder_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(native, "cache_folder", nowhere)
    monkeypatch.delenv(native.VARIABLE, raising=False)
    with pytest.warns(RuntimeWarning, match="torch computes instead: Could not determine home"):
        assert native.load.__wrapped__() is None


def test_it_can_be_switched_off() -> None:
    said = "from speech_mtp.nn.blocks import is_native; print(is_native())"
    done = subprocess.run(
        [sys.executable, "-c", said], env={native.VARIABLE: "0", "PATH": ""}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
