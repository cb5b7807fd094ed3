"""Rows of values: select, put and widen over dataclasses whose tensors have the row axis first."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def select(value: Any, rows: Tensor) -> Any:
    if isinstance(value, Tensor):
        return value[rows]
    if hasattr(value, "select"):
        return value.select(rows)
    return _mapped(value, lambda x: select(x, rows))


def put(value: Any, row: int, other: Any) -> Any:
    if isinstance(value, Tensor):
        return _put(value, row, other)
    if hasattr(value, "put"):
        return value.put(row, other)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{f.name: put(getattr(value, f.name), row, getattr(other, f.name)) for f in fields(value)})


def widen(value: Any, rows: int) -> Any:
    if isinstance(value, Tensor):
        return torch.cat([value, value.new_zeros(rows - len(value), *value.shape[1:])])
    if hasattr(value, "widen"):
        return value.widen(rows)
    return _mapped(value, lambda x: widen(x, rows))


def _mapped(value: Any, by: Any) -> Any:
    if not is_dataclass(value) or isinstance(value, type):
        return value
    return replace(value, **{f.name: by(getattr(value, f.name)) for f in fields(value)})


def _put(value: Tensor, row: int, other: Tensor) -> Tensor:
    size = [max(a, b) for a, b in zip(value.shape[1:], other.shape[1:], strict=True)]
    value, other = (_padded(x, size) for x in (value, other))
    return torch.cat([value[:row], other[:1].to(value.dtype), value[row + 1 :]])


def _padded(x: Tensor, size: list[int]) -> Tensor:
    pad = [n for have, want in zip(reversed(x.shape[1:]), reversed(size), strict=True) for n in (0, want - have)]
    return F.pad(x, pad)
