"""Run settings: what is read, merged, overridden and refused."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, field_validator, model_validator

from speech_mtp import config
from speech_mtp.config import Settings


class Optimizer(Settings):
    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)


class Stage(Settings):
    steps: int = Field(gt=0)


class Wide(Settings):
    kind: Literal["wide"]
    width: int = 1


class High(Settings):
    kind: Literal["high"]
    height: int = 1


class Run(Settings):
    seed: int = 0
    optimizer: Optimizer = Optimizer()
    head: dict[str, Any] = {"name": "medusa"}
    stages: list[Stage] = []
    extra: Stage | None = None
    either: Annotated[Wide | High, Field(discriminator="kind")] | None = None
    note: str | None = None

    @field_validator("note")
    @classmethod
    def short(cls, note: str | None) -> str | None:
        if note and len(note) > 20:
            raise ValueError("it must be at most 20 characters long")
        return note

    @model_validator(mode="after")
    def even(self) -> Run:
        if self.seed % 2:
            raise ValueError("Odd seeds bring bad luck; take an even one.")
        return self


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(text: str, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_a_file_fills_the_schema_and_defaults_stay(write: Any) -> None:
    run = config.load(write("seed: 4\noptimizer: {learning_rate: 1e-4}\nstages: [{steps: 3}]\n"), Run)
    assert (run.seed, run.optimizer.learning_rate, run.optimizer.betas) == (4, 1e-4, (0.9, 0.99))
    assert run.stages == [Stage(steps=3)]
    assert config.load(write(""), Run) == Run()


def test_a_base_is_merged_key_by_key_and_found_beside_the_file(write: Any) -> None:
    write(
        "seed: 2\noptimizer: {learning_rate: 0.5, betas: [0.1, 0.2]}\nstages: [{steps: 1}, {steps: 2}]\n", "base.yaml"
    )
    write("base: ../base.yaml\nseed: 6\n", "ablations/mid.yaml")
    run = config.load(
        write("base: mid.yaml\noptimizer: {learning_rate: 0.25}\nstages: [{steps: 9}]", "ablations/a.yaml"), Run
    )
    assert (run.seed, run.optimizer.learning_rate, run.optimizer.betas) == (6, 0.25, (0.1, 0.2))
    assert run.stages == [Stage(steps=9)]


def test_another_plugin_keeps_no_settings_of_the_one_in_the_base(write: Any) -> None:
    write("head: {name: medusa, layers: 2}\n", "base.yaml")
    assert config.load(write("base: base.yaml\nhead: {name: leap}"), Run).head == {"name": "leap"}
    same = config.load(write("base: base.yaml\nhead: {name: medusa, depth: 1}"), Run)
    assert same.head == {"name": "medusa", "layers": 2, "depth": 1}
    assert config.load(write("base: base.yaml\nhead: {depth: 1}"), Run).head["layers"] == 2


def test_overrides_come_last_in_order_and_make_groups(write: Any) -> None:
    path = write("seed: 4\nextra:\n")
    overrides = ["seed=8", "extra.steps=5", "optimizer.betas=[0, 1]", "head.depth=2", "seed=10", "note="]
    run = config.load(path, Run, overrides)
    assert (run.seed, run.extra, run.optimizer.betas, run.note) == (10, Stage(steps=5), (0.0, 1.0), None)
    assert run.head == {"depth": 2}
    assert config.load(write("head: {name: leap}"), Run, ["head.depth=2"]).head == {"name": "leap", "depth": 2}


@pytest.mark.parametrize(
    ("text", "overrides", "sentence"),
    [
        ("sede: 1", [], r"run\.yaml: there is no setting 'sede'; did you mean 'seed'\?"),
        ("optimizer: {learning_rat: 1}", [], r"no setting 'optimizer\.learning_rat'; did you mean 'learning_rate'"),
        ("stages: [{steps: 1, stepz: 1}]", [], r"no setting 'stages\.0\.stepz'; did you mean 'steps'"),
        ("extra: {steps: 1, stepz: 1}", [], r"no setting 'extra\.stepz'; did you mean 'steps'"),
        ("extra: {}", [], r"the setting 'extra\.steps' is missing"),
        ("stages: [{stepz: 1}]", [], r"no setting 'stages\.0\.stepz'"),
        ("either: {kind: wide, widht: 2}", [], r"no setting 'either\.wide\.widht'; did you mean 'width'"),
        ("seed: many", [], "the setting 'seed' is 'many', but it should be a valid integer"),
        ("extra: {steps: 0}", [], r"'extra\.steps' is 0, but it should be greater than 0\.$"),
        ("note: " + 30 * "x", [], "but it must be at most 20 characters long"),
        ("seed: 3", [], r"run\.yaml: Odd seeds bring bad luck; take an even one\.$"),
        ("", ["optimizer.beta=1"], r"override 'optimizer\.beta=1': there is no setting 'optimizer\.beta'.*'betas'"),
        ("", ["seed=x"], "override 'seed=x': the setting 'seed' is 'x'"),
        ("seed: 2", ["seed.a=1"], "override 'seed.a=1' goes into seed, which is 2"),
        ("", ["seed"], "'seed' is not of the form key=value"),
        ("", ["a..b=1"], r"'a\.\.b=1' is not of the form"),
        ("", ["seed=[1"], r"value of the override 'seed=\[1' is not valid YAML"),
        ("seed: 2\nseed: 4", [], r"run\.yaml \(line 2\) is not valid YAML: the key 'seed' occurs twice"),
        ("a: [1", [], r"run\.yaml \(line \d\) is not valid YAML"),
        ("- 1", [], "must hold settings as 'key: value' lines"),
        ("base: run.yaml", [], "comes back to itself"),
        ("base: [a]", [], r"'base' is \['a'\]"),
        ("note: !!python/object/apply:os.getcwd []", [], "is not valid YAML"),
    ],
)
def test_a_fault_is_one_sentence_that_says_where(write: Any, text: str, overrides: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        config.load(write(text), Run, overrides)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_missing_files_are_named(write: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no settings file .*absent\.yaml"):
        config.load(tmp_path / "absent.yaml", Run)
    with pytest.raises(FileNotFoundError, match=r"run\.yaml: its base 'absent\.yaml' does not exist"):
        config.load(write("base: absent.yaml"), Run)
    (tmp_path / "latin.yaml").write_bytes(b"note: caf\xe9")
    with pytest.raises(ValueError, match=r"latin\.yaml is not a YAML text file in UTF-8"):
        config.load(tmp_path / "latin.yaml", Run)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E3", 1000.0),
        ("-.5", -0.5),
        ("3.", 3.0),
        (".inf", math.inf),
        ("1_000", 1000),
        ("0x10", 16),
        ("12", 12),
        ("no", "no"),
        ("on", "on"),
        ("5:15", "5:15"),
        ("2024-01-01", "2024-01-01"),
        ("True", True),
        ("~", None),
        ("", None),
        ("a=b", "a=b"),
        ("1.2.3", "1.2.3"),
        ("'7'", "7"),
        ("{a: [1, x]}", {"a": [1, "x"]}),
    ],
)
def test_values_follow_yaml_1_2(text: str, value: object) -> None:
    keys, parsed = config.parse_override(f"a.b={text}")
    assert keys == ("a", "b")
    assert parsed == value
    assert type(parsed) is type(value)


KEYS = st.lists(st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True), min_size=1, max_size=4)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(TEXT, v, max_size=3), max_leaves=8)


@given(KEYS, st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.booleans())
def test_every_number_that_python_prints_can_be_an_override(keys: list[str], value: float) -> None:
    assert config.parse_override(f"{'.'.join(keys)}={value}") == (tuple(keys), value)


@given(TEXT)
def test_any_text_is_an_override_or_a_value_error(text: str) -> None:
    try:
        keys, _ = config.parse_override(text)
    except ValueError:
        return
    assert keys
    assert all(keys)
    assert "=" in text


class Anything(Settings):
    value: Any


@given(VALUES)
def test_what_is_dumped_loads_back_the_same(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "resolved.yaml"
    config.dump(Anything(value=value), path)
    back = config.load(path, Anything).value
    assert back == value
    assert type(back) is type(value)


def test_dump_holds_everything_and_replaces_the_file_whole(write: Any, tmp_path: Path) -> None:
    path = write("old: file\n", "out/resolved.yaml")
    run = config.load(write("seed: 2\nstages: [{steps: 3}]"), Run, ["note=no", "head.path=1e-4"])
    config.dump(run, path)
    assert config.load(path, Run) == run
    assert "betas" in path.read_text()
    assert os.listdir(path.parent) == ["resolved.yaml"]
    with pytest.raises(OSError, match=r"Cannot write .*there is no folder"):
        config.dump(run, tmp_path / "absent" / "resolved.yaml")


def test_merge_leaves_its_arguments_alone() -> None:
    base, over = {"a": {"b": 1}}, {"a": {"c": 2}}
    assert config.merge(base, over) == {"a": {"b": 1, "c": 2}}
    assert (base, over) == ({"a": {"b": 1}}, {"a": {"c": 2}})


def test_settings_do_not_change_after_loading() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Run().seed = 3
