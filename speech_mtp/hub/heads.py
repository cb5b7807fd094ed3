"""Heads: packaged ones and folders; saved with, and loaded onto, the trunk of text or speech they were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from speech_mtp import plugins
from speech_mtp.heads.base import Binding, MTPHead, TrunkShape
from speech_mtp.hub.finding import ASSETS
from speech_mtp.lm.group_lm import GroupLM
from speech_mtp.storage import CONFIG, Storage, load_checkpoint, load_weights, read_config, save_checkpoint

if TYPE_CHECKING:  # it imports ``transformers``, which takes a second
    from speech_mtp.lm.text_lm import TextLM

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


def load_head(folder: str | Path, lm: TextLM | GroupLM) -> MTPHead:
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
    fingerprint = lm.fingerprint
    if backbone != fingerprint:
        raise ValueError(
            f"The head {folder} was trained on another backbone (fingerprint {backbone[:12] or 'unknown'}) than "
            f"this one ({fingerprint[:12] or 'unknown'}); use that one, or train a head for this one."
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
