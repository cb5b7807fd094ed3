"""Training checkpoints: safetensors for every tensor, JSON for every number, written aside and renamed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from speech_mtp.training.base import Task

_LAST = "last"


def save(task: Task, folder: Path, step: int, more: dict[str, Any]) -> None:
    """Replace ``folder/last`` by a checkpoint of ``task`` after ``step`` steps, never leaving less than one."""
    aside, old, last = folder / "last.tmp", folder / "last.old", folder / _LAST
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name, module in task.modules.items():
        save_file({k: v.contiguous() for k, v in module.state_dict().items()}, aside / f"{name}.safetensors")
    for name, optimizer in task.optimizers.items():
        save_file(_optimizer_tensors(optimizer), aside / f"{name}.optimizer.safetensors")
    (aside / "state.json").write_text(json.dumps({"step": step, **more}), encoding="utf-8")
    shutil.rmtree(old, ignore_errors=True)
    if last.exists():
        last.rename(old)
    aside.rename(last)
    shutil.rmtree(old, ignore_errors=True)


def load(task: Task, folder: Path) -> dict[str, Any] | None:
    """Restore ``task`` from ``folder/last`` (or, after a kill in mid-rename, ``last.old``); None if there is none."""
    found = next((p for p in (folder / _LAST, folder / "last.old") if (p / "state.json").exists()), None)
    if found is None:
        return None
    try:
        for name, module in task.modules.items():
            module.load_state_dict(load_file(found / f"{name}.safetensors"))
        for name, optimizer in task.optimizers.items():
            _restore_optimizer(optimizer, load_file(found / f"{name}.optimizer.safetensors"))
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ValueError(
            f"The checkpoint {found} cannot be resumed ({str(error).splitlines()[0]}); "
            "remove that folder to start afresh, or restore the settings that it was trained with."
        ) from error
    state: dict[str, Any] = json.loads((found / "state.json").read_text(encoding="utf-8"))
    return state


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {
        f"{index}.{key}": value.detach().clone().contiguous() if isinstance(value, Tensor) else torch.tensor(value)
        for index, entries in state.items()
        for key, value in entries.items()
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
