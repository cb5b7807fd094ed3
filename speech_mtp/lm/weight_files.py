"""The tensors in the safetensors files of a model's folder, by name."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open
from torch import Tensor

INDEX = "model.safetensors.index.json"


class WeightFiles:
    """The tensors of the model in ``folder`` by name, read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        index = folder / INDEX
        if index.is_file():
            places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            self._files = {name: folder / file for name, file in places.items()}
        else:
            files = sorted(folder.glob("*.safetensors"))
            self._files = {name: path for path in files for name in _names(path)}

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._files[name], "pt") as file:
            tensor: Tensor = file.get_tensor(name)
        return tensor

    def names(self) -> list[str]:
        return sorted(self._files)


def _names(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return list(file.keys())
