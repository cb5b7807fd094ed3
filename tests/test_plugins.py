"""The folder is the registry: which files are plug-ins, and what a wrong setting is told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from speech_mtp import plugins

FILES = {
    "__init__.py": "",
    "heads/__init__.py": "",
    "heads/base.py": """
from abc import ABC

class Head(ABC):
    pass
""",
    "heads/fast_mtp.py": """
from pathlib import Path
from house.heads.base import Head

class Helper:
    pass

class FastMTP(Head):
    def __init__(self, num_layers: int, depth: int = 2) -> None:
        self.num_layers, self.depth = num_layers, depth
""",
    "heads/leap.py": "from house.heads.fast_mtp import FastMTP\nclass Far(FastMTP):\n    pass\n",
    "heads/local.py": """
from house.heads import base
class _Common(base.Head):
    pass
class Free(_Common):
    def __init__(self, **anything: int) -> None:
        self.anything = anything
""",
    "heads/broken.py": """
import a_package_that_nobody_has
from house.heads.base import Head
class Broken(Head):
    pass
""",
    "heads/engine.py": "class Engine:\n    pass\n",
    "heads/_parts.py": "from house.heads.base import Head\nclass Parts(Head):\n    pass\n",
    "heads/two.py": "from house.heads.base import Head\nclass A(Head):\n    pass\nclass B(Head):\n    pass\n",
    "text/__init__.py": "",
    "text/g2p/__init__.py": "",
    "text/g2p/hibari.py": "class Other:\n    pass\nclass Hibari:\n    pass\n",
}


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in FILES.items():
        path = tmp_path / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plugins, "ROOT", "house")
    yield
    for module in [m for m in sys.modules if m.partition(".")[0] == "house"]:
        del sys.modules[module]


@pytest.mark.usefixtures("house")
class TestFolder:
    def test_names_lists_the_files_that_define_a_plugin_and_imports_none(self) -> None:
        assert plugins.names("heads") == ["broken", "fast_mtp", "leap", "local", "two"]
        assert plugins.names("text.g2p") == ["hibari"]
        assert "house.heads.broken" not in sys.modules
        assert "house.heads.fast_mtp" not in sys.modules

    def test_build_gives_settings_and_program_arguments_to_the_class(self) -> None:
        head = plugins.build("heads", {"name": "fast_mtp", "depth": 5}, num_layers=1)
        assert (type(head).__name__, head.num_layers, head.depth) == ("FastMTP", 1, 5)

    def test_a_bare_name_and_a_dash_are_accepted(self) -> None:
        assert type(plugins.build("heads", "fast-mtp", num_layers=1)).__name__ == "FastMTP"

    def test_the_spec_is_not_changed(self) -> None:
        spec = {"name": "fast_mtp", "num_layers": 3}
        plugins.build("heads", spec)
        assert spec == {"name": "fast_mtp", "num_layers": 3}

    def test_indirect_subclasses_are_plugins(self) -> None:
        assert plugins.build("heads", "leap", num_layers=2).num_layers == 2
        assert plugins.build("heads", {"name": "local", "x": 1}).anything == {"x": 1}

    def test_a_family_without_base_goes_by_the_class_name(self) -> None:
        assert type(plugins.build("text.g2p", "hibari")).__name__ == "Hibari"

    def test_outsiders_are_named_by_module_and_class(self) -> None:
        assert plugins.build("heads", {"name": "collections:Counter"}) == {}

    @pytest.mark.parametrize(
        ("spec", "more", "sentence"),
        [
            ("fast_mpt", {}, r"no 'fast_mpt' in heads; did you mean 'fast_mtp'\? \(known: broken, fast_mtp, leap"),
            ("engine", {}, "no 'engine' in heads"),
            ("_parts", {}, "no '_parts' in heads"),
            ("base", {}, "no 'base' in heads"),
            ({"name": "fast_mtp", "depht": 1}, {"num_layers": 1}, "no setting 'depht'; did you mean 'depth'"),
            ({"name": "fast_mtp", "num_layers": 1}, {"num_layers": 1}, "num_layers is set by the program"),
            ({"name": "fast_mtp"}, {}, "'fast_mtp' needs num_layers"),
            ({"depth": 1}, {}, "needs its name"),
            ("two", {}, "two.py defines A, B; name one of them like the module"),
            ("no_such_package.module:Class", {}, "there is no module 'no_such_package'"),
            ("collections:Nothing", {}, "the module collections has no class 'Nothing'"),
        ],
    )
    def test_a_wrong_setting_is_one_clear_sentence(self, spec: object, more: dict[str, int], sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence) as caught:
            plugins.build("heads", spec, **more)
        assert "\n" not in str(caught.value)

    def test_an_unknown_family_is_named(self) -> None:
        with pytest.raises(ValueError, match="no plug-in family 'haeds'"):
            plugins.names("haeds")
        with pytest.raises(ValueError, match=r"no plug-in family 'haeds\.inner'"):
            plugins.names("haeds.inner")

    def test_a_package_that_the_plugin_needs_is_not_mistaken_for_the_plugin(self) -> None:
        with pytest.raises(ModuleNotFoundError, match="a_package_that_nobody_has"):
            plugins.build("heads", "broken")


def test_require_returns_the_module_or_names_the_extra() -> None:
    assert plugins.require("json", "eval").dumps({}) == "{}"
    with pytest.raises(plugins.MissingExtra, match=r"'no_judge' is not installed.*pip install 'speech-mtp\[eval\]'"):
        plugins.require("no_judge.model", "eval")


def test_nearest_without_a_close_name_lists_all() -> None:
    assert plugins.nearest("zzz", ["beta", "alpha"]) == "known: alpha, beta"
    assert plugins.nearest("Alpah", ["beta", "alpha"]).startswith("did you mean 'alpha'?")
    assert plugins.nearest("x", []) == "there is none to choose from"
