"""How weights lie on disk: a checkpoint is a folder of ``config.json``, ``model.safetensors`` and ``README.md``.

It is there whole or not at all, its large matrices may take fewer bits, and pickled weights are never opened. Which
models there are, and what their settings mean, is known by :mod:`speech_mtp.hub`.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

Storage = Literal["int8", "bf16", "fp32"]

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
LARGE = 4096  # elements from which a matrix is stored with fewer bits


# -- tensors on disk ------------------------------------------------------------------------------------------------
def quantise_state(state: Mapping[str, Tensor], dtype: Storage) -> dict[str, Tensor]:
    """Weights -> the tensors to store, on the CPU; matrices of 4,096 elements or more take fewer bits.

    ``int8``: symmetric, ``round(w / s)`` with ``s = max|row| / 127`` for every row of the first axis, stored as
    ``<name>.scale`` float32. ``bf16``: rounded. Everything else stays as it is. Raises ValueError for an unknown
    dtype and for weights that are not finite.
    """
    if dtype not in ("int8", "bf16", "fp32"):
        raise ValueError(f"The storage dtype is {dtype!r}; use int8, bf16 or fp32.")
    tensors: dict[str, Tensor] = {}
    for name, value in state.items():
        weight = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        large = weight.is_floating_point() and weight.ndim > 1 and weight.numel() >= LARGE
        if weight.is_floating_point() and not weight.isfinite().all():
            raise ValueError(f"The weights of {name} are not finite (the training diverged); save an earlier state.")
        if large and dtype == "bf16":
            tensors[name] = weight.bfloat16()
        elif large and dtype == "int8" and f"{name}.scale" not in state:
            rows = weight.float().flatten(1)
            scale = rows.abs().amax(1).clamp(min=1e-30) / 127
            tensors[name] = (rows / scale[:, None]).round().to(torch.int8).view(weight.shape)
            tensors[f"{name}.scale"] = scale
        else:
            tensors[name] = weight
    return tensors


def dequantise_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`quantise_state` up to rounding: int8 with a scale, and bf16, become float32."""
    state: dict[str, Tensor] = {}
    scaled = {name for name, t in tensors.items() if t.dtype == torch.int8 and f"{name}.scale" in tensors}
    for name, tensor in tensors.items():
        if name in scaled:
            scale = tensors[f"{name}.scale"].float()
            state[name] = tensor.float() * scale.view(-1, *[1] * (tensor.ndim - 1))
        elif name.removesuffix(".scale") not in scaled:
            state[name] = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
    return state


# -- checkpoints ----------------------------------------------------------------------------------------------------
def save_checkpoint(
    folder: str | Path, config: Mapping[str, Any], state: Mapping[str, Tensor], dtype: Storage, card: str
) -> None:
    """Write a checkpoint folder, all of it or nothing; an earlier checkpoint there is replaced.

    Raises ValueError when ``folder`` holds other things than a checkpoint, OSError when it cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or {p.name for p in folder.iterdir()} - {CONFIG, WEIGHTS, CARD}):
        raise ValueError(f"{folder} exists and is not a checkpoint, so it is not replaced; give another folder.")
    tensors = quantise_state(state, dtype)
    text = json.dumps({**config, "storage": dtype}, indent=2, ensure_ascii=False) + "\n"
    with new_folder(folder) as aside:
        save_file(tensors, aside / WEIGHTS)
        (aside / CONFIG).write_text(text, encoding="utf-8")
        (aside / CARD).write_text(card, encoding="utf-8")


def read_config(folder: str | Path, kind: str | None = None) -> dict[str, Any]:
    """``config`` of a checkpoint folder, without its weights. Errors as for :func:`load_checkpoint`."""
    folder = Path(folder)
    refuse_files(folder)
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            pickles = [p.name for p in sorted(folder.glob("*")) if p.suffix in PICKLES]
            if pickles:
                refuse_files(folder / pickles[0])
            raise FileNotFoundError(f"There is no checkpoint in {folder}: {name} is missing; check the path.")
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        found = config["kind"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG} is damaged or of another program; get the checkpoint again.") from error
    if kind and found != kind:
        raise ValueError(f"The checkpoint {folder} holds a {found}, not a {kind}; give the folder of a {kind}.")
    return config


def load_checkpoint(folder: str | Path, kind: str | None = None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``config`` and float ``state`` of a checkpoint folder, which must be of ``kind`` if one is given.

    Raises FileNotFoundError for missing files and ValueError for pickles, damaged files and another kind.
    """
    folder = Path(folder)
    config = read_config(folder, kind)
    if is_pickle(folder / WEIGHTS):
        refuse_files(folder / WEIGHTS)
    try:
        return config, dequantise_state(load_file(folder / WEIGHTS))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder / WEIGHTS} is truncated or damaged; get the checkpoint again.") from error


def load_weights(module: torch.nn.Module, state: Mapping[str, Tensor], folder: Path) -> None:
    """Copy ``state`` into ``module``; ValueError, in one sentence, when they do not fit together."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(
            f"The weights and the {CONFIG} in {folder} do not fit together; get the checkpoint again."
        ) from error


# -- folders --------------------------------------------------------------------------------------------------------
@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``target`` that takes its place when the block succeeds."""
    aside = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    old = aside.with_name(f"{aside.name}.old")
    try:
        aside.mkdir(parents=True)
        yield aside
        if target.exists():
            target.rename(old)
        aside.rename(target)
    except OSError as error:
        if old.exists():
            old.rename(target)
        raise OSError(f"Cannot write {target}: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle, or a zip archive that may hold one; safetensors have ``{`` as their ninth byte."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] != b"{" and (head[:4] == b"PK\x03\x04" or head[:1] == b"\x80")


def refuse_files(path: Path) -> None:
    """A checkpoint is a folder: raise ValueError for a file, with a special sentence for pickles."""
    if path.is_file() and (path.suffix in PICKLES or is_pickle(path)):
        raise ValueError(f"{path} is a pickle, which can run code when it is opened; use a checkpoint in safetensors.")
    if path.is_file():
        raise ValueError(f"{path} is a file; give the checkpoint's folder.")
