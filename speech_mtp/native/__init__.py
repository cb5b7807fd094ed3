"""The package's only compiled code: ``kernels.c``, made for the machine it runs on when it is first asked for.

The library lies in the user's cache under a name that tells source, compiler flags and processor apart, so a cache that
machines share holds one for each. It uses the threads that torch has already (the OpenMP library in torch's wheel), not
a second pool beside them. Where there is no compiler, or ``SPEECH_MTP_NATIVE`` is 0, :func:`load` gives None and
callers compute the same with torch, slower.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path

from speech_mtp.files import cache_folder, replacing

VARIABLE = "SPEECH_MTP_NATIVE"
SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-Wno-psabi")


class Linear(ctypes.Structure):
    """``Linear`` of ``kernels.c``."""

    _fields_ = (
        ("kind", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("tiles", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    )


class Layer(ctypes.Structure):
    """``Layer`` of ``kernels.c``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("side", "enter", "middle", "q_norm", "k_norm")),
        *((name, Linear) for name in ("qkv", "leave", "gate_up", "down")),
    )


class Forward(ctypes.Structure):
    """``Forward`` of ``kernels.c``."""

    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in (
                *("layers", "dim", "heads", "kv_heads", "head_dim", "hidden"),
                *("rows", "nodes", "behind", "size", "entries", "taps", "threads", "cache_rows"),
            )
        ),
        *((name, ctypes.c_float) for name in ("eps", "qk_eps", "scale")),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("layer", "norm", "cos", "sin", "index", "lengths", "at", "ancestors"),
                *("keys", "values", "side", "x", "final", "tap", "tapped"),
            )
        ),
    )


class Channel(ctypes.Structure):
    """``Channel`` of ``kernels.c``."""

    _fields_ = (
        *((name, Linear) for name in ("up", "down", "project")),
        *((name, ctypes.c_void_p) for name in ("norm", "table")),
        *((name, ctypes.c_int64) for name in ("settings", "guarded")),
    )


class Depth(ctypes.Structure):
    """``Depth`` of ``kernels.c``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("channels", "rows", "dim", "width", "narrow", "threads", "purpose")),
        ("eps", ctypes.c_float),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("channel", "x", "allowed", "stuck", "lowered"),
                *("temperature", "top_k", "top_p", "seed", "position", "tokens"),
            )
        ),
    )


@cache
def load() -> ctypes.CDLL | None:
    """The compiled library, or None; where it could be had but for a fault, a RuntimeWarning says which."""
    if os.environ.get(VARIABLE) == "0" or os.name != "posix":
        return None
    try:
        return _with_threads() or _loaded(())
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # RuntimeError: no home folder
        lines = str(getattr(error, "stderr", "") or error).strip().splitlines() or [type(error).__name__]
        warnings.warn(
            f"The fast kernels cannot be compiled here, torch computes instead: {lines[0]}", RuntimeWarning, 2
        )
        return None


def _with_threads() -> ctypes.CDLL | None:
    """The library on torch's own threads; None where torch brings no OpenMP library that fits."""
    openmp = _openmp()
    if openmp is None:
        return None
    try:
        ctypes.CDLL(openmp, mode=ctypes.RTLD_GLOBAL)
        return _loaded(("-fopenmp",))
    except (OSError, subprocess.SubprocessError):
        return None


def _openmp() -> str | None:
    """The GNU OpenMP library that this process has loaded with torch."""
    import torch  # noqa: F401  brings it

    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = (line.split(maxsplit=5)[-1] for line in lines if "libgomp" in line)
    return next(found, None)


def _loaded(more: tuple[str, ...]) -> ctypes.CDLL | None:
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", "gcc"), "gcc", "cc", "clang"))), None)
    if compiler is None:
        return None
    flags = (*_FLAGS, "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native", *more)
    made_of = SOURCE.read_bytes() + repr((compiler, flags, _processor())).encode()
    name = f"kernels-{hashlib.sha256(made_of).hexdigest()[:16]}.so"
    path = cache_folder() / "native" / name
    if path.is_file():
        return ctypes.CDLL(str(path))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _compile(compiler, flags, path)
    except OSError:  # a cache that cannot be written: compiled for this process alone
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            _compile(compiler, flags, Path(folder) / name)
            return ctypes.CDLL(str(Path(folder) / name))
    return ctypes.CDLL(str(path))


def _compile(compiler: str, flags: tuple[str, ...], path: Path) -> None:
    """Compiled with OpenMP but not linked to it: the symbols are those of the library that is loaded already."""
    print("Compiling fast kernels for this processor, once ...", file=sys.stderr, flush=True)
    with replacing(path) as temporary:
        thing = temporary.with_suffix(".o")
        try:
            for command in (
                [*flags, "-c", str(SOURCE), "-o", str(thing)],
                ["-shared", str(thing), "-lm", "-o", str(temporary)],
            ):
                subprocess.run([compiler, *command], check=True, capture_output=True, text=True, timeout=300)
        finally:
            thing.unlink(missing_ok=True)


def _processor() -> str:
    """What tells processors apart that need code of their own."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    named = ("model name", "flags", "CPU implementer", "CPU part", "Features")
    return "\n".join(sorted({line for line in lines if line.startswith(named)}))
