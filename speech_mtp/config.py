"""Run settings: YAML files and ``a.b=3`` overrides -> one validated pydantic model, and back to YAML.

A file may name another with ``base: other.yaml`` (relative to itself) and then holds only what differs: mappings
are merged key by key, everything else is replaced. A mapping whose ``name`` differs is another plug-in, so it is
replaced as a whole: ``head: {name: leap}`` keeps none of the settings of a ``medusa`` in the base.

Scalars are read by the core schema of YAML 1.2, so that ``1e-4`` is a number, and ``no`` and ``5:15`` are text.
This module knows no schema of the project: those subclass :class:`Settings` beside the code that reads them.
"""

from __future__ import annotations

import dataclasses
import os
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from speech_mtp.files import replacing
from speech_mtp.plugins import nearest


class Settings(BaseModel):
    """Base of every schema: unknown keys are errors and values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, ser_json_inf_nan="constants")


Schema = TypeVar("Schema", bound=BaseModel)
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")
"""What pydantic calls an unknown key of a model and of a dataclass."""


def load(path: str | os.PathLike[str], schema: type[Schema], overrides: Iterable[str] = ()) -> Schema:
    """Read the file at ``path`` and its bases, apply ``overrides`` in order, validate.

    Raises ``FileNotFoundError``, and ``ValueError`` with one sentence that says where the fault lies: which file or
    override, which key (naming the nearest valid one), which value.
    """
    values = _read_with_bases(Path(path))
    overridden: dict[tuple[str, ...], str] = {}
    for override in overrides:
        keys, value = parse_override(override)
        _set(values, keys, value, override)
        overridden[keys] = override
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        faults = error.errors()
        # A misspelt key also leaves the right one missing: it is the one to report.
        fault = next((f for f in faults if f["type"] in UNKNOWN), faults[0])
        source = _source(fault["loc"], overridden) or os.fspath(path)
        raise ValueError(f"{source}: {_sentence(fault, schema)}") from error


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """``"train.rate=1e-4"`` -> ``(("train", "rate"), 0.0001)``; the value is YAML, an empty one is null."""
    left, equals, right = text.partition("=")
    keys = tuple(key.strip() for key in left.split("."))
    if not equals or not all(keys):
        raise ValueError(f"The override {text!r} is not of the form key=value or group.key=value.")
    try:
        return keys, yaml.load(right, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"The value of the override {text!r} is not valid YAML; quote it.") from error


def dump(settings: BaseModel, path: str | os.PathLike[str]) -> None:
    """Write the resolved settings as YAML that :func:`load` reads back to the same values; whole or not at all."""
    text = yaml.dump(settings.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``base``, key by key; neither is changed. A mapping of another ``name`` replaces."""
    merged = dict(base)
    for key, value in over.items():
        old = base.get(key)
        merged[key] = value
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            names = {settings["name"] for settings in (old, value) if "name" in settings}
            merged[key] = merge(old, value) if len(names) < 2 else value
    return merged


def _read_with_bases(path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in children:
        raise ValueError(f"{path}: its chain of 'base' files comes back to itself; remove one of them.")
    values = _read(path)
    base = values.pop("base", None)
    if base is None:
        return values
    if not isinstance(base, str):
        raise ValueError(f"{path}: 'base' is {base!r}, but it must be the name of one YAML file.")
    below = path.parent / base
    if not below.is_file():
        raise FileNotFoundError(f"{path}: its base {base!r} does not exist (looked for {below}).")
    return merge(_read_with_bases(below, (*children, path.resolve())), values)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no settings file {path}.")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.MarkedYAMLError as error:
        line = f" (line {error.problem_mark.line + 1})" if error.problem_mark else ""
        raise ValueError(f"{path}{line} is not valid YAML: {error.problem}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a YAML text file in UTF-8.") from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"{path} must hold settings as 'key: value' lines at the top.")
    return values


def _set(values: dict[str, Any], keys: tuple[str, ...], value: Any, override: str) -> None:
    for depth, key in enumerate(keys[:-1], start=1):
        inner = values.get(key)
        if inner is not None and not isinstance(inner, Mapping):
            raise ValueError(
                f"The override {override!r} goes into {'.'.join(keys[:depth])}, which is {inner!r} and not a group."
            )
        values[key] = dict(inner or {})
        values = values[key]
    values[keys[-1]] = value


# --- one sentence for each fault -------------------------------------------------------------------------------


def _source(loc: tuple[int | str, ...], overridden: Mapping[tuple[str, ...], str]) -> str | None:
    for keys, override in reversed(list(overridden.items())):
        if loc[: len(keys)] == keys:
            return f"override {override!r}"
    return None


def _sentence(fault: Mapping[str, Any], schema: type[BaseModel]) -> str:
    loc = fault["loc"]
    key = ".".join(str(part) for part in loc)
    if fault["type"] in UNKNOWN:
        return f"there is no setting {key!r}; {nearest(str(loc[-1]), _keys_beside(schema, loc))}."
    if fault["type"] == "missing":
        return f"the setting {key!r} is missing; add it."
    if not loc:
        return f"{fault['msg'].removeprefix('Value error, ').rstrip('.')}."
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input ").rstrip(".")
    return f"the setting {key!r} is {fault['input']!r}, but {'it ' * fault['msg'].startswith('Input ')}{message}."


def _keys_beside(schema: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The valid keys of the model in which the last part of ``loc`` was not one."""
    models: list[type] = [schema]
    for part in loc[:-1]:
        fields = [_fields(model)[part] for model in models if part in _fields(model)]
        inside = [inner for field in fields for inner in _models_in(field)]
        # A part that is no field is an index, or pydantic's label for a member of a union.
        models = inside or [model for model in models if part in _labels(model)] or models
    return sorted({field for model in models for field in _fields(model)})


def _labels(model: type) -> list[Any]:
    """What pydantic may call a member of a union: its class, or a value of the field that tells members apart."""
    tags = [
        tag for field in _fields(model).values() if typing.get_origin(field) is typing.Literal for tag in field.__args__
    ]
    return [model.__name__, *tags]


def _fields(model: type) -> dict[Any, Any]:
    """The settings of a pydantic model or a dataclass, and their types."""
    if issubclass(model, BaseModel):
        return {name: field.annotation for name, field in model.model_fields.items()}
    return dict(typing.get_type_hints(model))


def _models_in(annotation: Any) -> list[type]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) or dataclasses.is_dataclass(annotation) else []
    return [model for inner in typing.get_args(annotation) for model in _models_in(inner)]


# --- YAML 1.2 scalars, and no key twice ------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} occurs twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers = {}

    def ignore_aliases(self, data: Any) -> bool:
        return True


_SCALARS = [
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
]
for _tag, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
