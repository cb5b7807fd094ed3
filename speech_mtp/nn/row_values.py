"""Rows join and leave a running batch: what a dataclass keeps of every row, as a value whose rows can be chosen.

A value is a dataclass whose tensors have the row axis first. Dataclasses within it, and objects that have the methods
``select``, ``put`` and ``widen`` themselves (a :class:`~speech_mtp.nn.kv_cache.KVCache`, whose rows are its second
axis), are descended into; None, numbers and all else are kept as they are::

    state = widen(state, 4)                 two rows become four, the new ones zeros
    state = put(state, 2, alone)            the row of ``alone`` takes the place of row 2
    state = select(state, torch.tensor([2, 0]))

This module knows nothing of what the rows mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch.nn.functional as F
from torch import Tensor

Value = TypeVar("Value")


def select(value: Value, rows: Tensor) -> Value:
    """The rows ``rows [N]`` in that order; a row may be chosen more than once."""
    return _each(lambda x: x[rows], "select", (rows,), value)


def put(value: Value, row: int, other: Value) -> Value:
    """Row ``row`` becomes the only row of ``other``. Where other axes differ in size, the smaller is padded with zeros.

    Go on with what is returned: a cache is written in place."""
    return _each(lambda x, one: _placed(x, row, one), "put", (row,), value, other)


def widen(value: Value, rows: int) -> Value:
    """Zeros behind the rows that there are, up to ``rows`` in all. Raises ValueError if there are more already."""
    return _each(lambda x: _widened(x, rows), "widen", (rows,), value)


def trimmed(value: Value) -> Value:
    """The same rows, where caches among them have no room that is not used."""
    return _each(lambda x: x, "trimmed", (), value)


def _each(change: Callable[..., Tensor], name: str, arguments: tuple[Any, ...], *values: Any) -> Any:
    """``change`` of all tensors of the first value (of both at once, where there are two), or the method ``name``."""
    first = values[0]
    if any(value is None for value in values):
        return first
    if isinstance(first, Tensor):
        return change(*values)
    if hasattr(first, name):
        return getattr(first, name)(*arguments, *values[1:])
    if is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in fields(first)]
        return replace(first, **{n: _each(change, name, arguments, *(getattr(v, n) for v in values)) for n in names})
    return first


def _placed(x: Tensor, row: int, one: Tensor) -> Tensor:
    assert len(one) == 1, f"one row is put, not {tuple(one.shape)}"
    sizes = [max(a, b) for a, b in zip(x.shape[1:], one.shape[1:], strict=True)]
    wide = _padded(x, [len(x), *sizes]).clone()
    wide[row] = _padded(one, [1, *sizes])[0]
    return wide


def _widened(x: Tensor, rows: int) -> Tensor:
    if rows < len(x):
        raise ValueError(f"There are {len(x)} rows; select some before {rows} can be left.")
    return _padded(x, [rows, *x.shape[1:]])


def _padded(x: Tensor, sizes: list[int]) -> Tensor:
    """Zeros behind ``x`` on every axis, up to ``sizes``."""
    missing = [(0, size - had) for size, had in zip(sizes, x.shape, strict=True)]
    return F.pad(x, [n for pair in reversed(missing) for n in pair])
