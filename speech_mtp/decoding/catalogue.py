"""Decoding rules by name: which there are, and which of them can draft with a head."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from speech_mtp import plugins
from speech_mtp.decoding.base import DecodingRule
from speech_mtp.heads.base import MTPHead

FAMILY = "decoding"
Spec = str | Mapping[str, Any]
"""A rule's name, or a mapping of ``name`` and its settings."""


def names() -> list[str]:
    """All rules, sorted."""
    return [name for name in plugins.names(FAMILY) if _is_rule(name)]


def fitting(head: MTPHead | None) -> list[str]:
    """The rules that draft with ``head``; None: those that draft without any."""
    return [name for name in names() if fits(name, head)]


def fits(spec: Spec, head: MTPHead | None) -> bool:
    """Whether a rule drafts with ``head`` (None: without any). Raises ValueError for an unknown one."""
    cls: Any = find(spec)
    parameter = inspect.signature(cls).parameters.get("head")
    if head is None:
        return parameter is None or parameter.default is not parameter.empty
    return parameter is not None and bool(cls.supports(head))


def find(spec: Spec) -> type[DecodingRule]:
    """The class that ``spec`` means. Raises ValueError for an unknown one, naming the nearest."""
    name = _name(spec)
    if ":" not in name and not _is_rule(name):
        raise ValueError(f"There is no decoding rule {name!r}; {plugins.nearest(name, names())}.")
    return plugins.find(FAMILY, name)


def build(spec: Spec, head: MTPHead | None = None) -> DecodingRule:
    """The rule that ``spec`` names, with ``head``.

    Raises ValueError, in one sentence, for an unknown rule or setting and for a rule and a head that do not fit.
    """
    name = _name(spec)
    if not fits(spec, head):
        others = f"rules that do: {', '.join(fitting(head)) or 'none'}"
        if head is None:
            raise ValueError(f"The rule {name} drafts with a head, and there is none; name one, or use {others}.")
        raise ValueError(f"The rule {name} does not draft with {type(head).__name__} {head.offsets}; {others}.")
    rule: DecodingRule = plugins.build(FAMILY, spec, **({} if head is None else {"head": head}))
    return rule


def default(head: MTPHead | None) -> str:
    """The rule to use when none is asked for: plain decoding without a head, otherwise the cascade, or what fits."""
    if head is None:
        return "vanilla"
    known = fitting(head)
    if not known:
        raise ValueError(f"There is no rule that drafts with {type(head).__name__} {head.offsets}.")
    return "cascade" if "cascade" in known else known[0]


def label(spec: Spec) -> str:
    """``tree`` or ``tree(size=32)``."""
    settings = [] if isinstance(spec, str) else [f"{key}={value}" for key, value in spec.items() if key != "name"]
    return f"{_name(spec)}({', '.join(settings)})" if settings else _name(spec)


def _name(spec: Spec) -> str:
    return spec if isinstance(spec, str) else str(spec.get("name", ""))


def _is_rule(name: str) -> bool:
    """The folder also holds the laws that tokens are drawn from: several in one file, so none of them is found."""
    try:
        return issubclass(plugins.find(FAMILY, name), DecodingRule)
    except ValueError:
        return False
