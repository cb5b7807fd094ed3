"""What a format of other programs is: which heads it can hold, how one is written, and how it is read back.

Names and settings are the interface of the program that reads them, so they are theirs and not ours. A head's weights
are float32, a trunk's stay in the precision that it is stored in.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from speech_mtp.heads.base import Binding, MTPHead, TrunkShape
from speech_mtp.heads.leap import Leap
from speech_mtp.heads.medusa import Medusa
from speech_mtp.lm.fingerprint import SOURCE
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.storage import CONFIG, WEIGHTS, load_weights, new_folder


class Export(ABC):
    """A format. ``holds`` says which heads it can hold, as the end of a sentence."""

    holds: str

    @property
    def name(self) -> str:
        return type(self).__module__.rpartition(".")[2].replace("_", "-")

    @abstractmethod
    def obstacle(self, head: MTPHead, lm: TextLM) -> str | None:
        """Why ``head`` with its trunk ``lm`` does not fit the format, as a clause; None if it does."""

    @abstractmethod
    def fill(self, folder: Path, head: MTPHead, lm: TextLM) -> None:
        """Write the files into an empty ``folder``."""

    def write(self, folder: str | Path, head: MTPHead, lm: TextLM) -> None:
        """Write the export of ``head``, bound to its trunk ``lm``, all of it or nothing.

        Raises ValueError for a head that the format cannot hold and for a folder that is not empty, and OSError when
        it cannot be written.
        """
        target = Path(folder)
        check_free(target)
        obstacle = self.obstacle(head, lm)
        if obstacle:
            name = type(head).__name__
            raise ValueError(f"The format {self.name} cannot hold this {name} head: {obstacle}; it holds {self.holds}.")
        with new_folder(target) as aside:
            self.fill(aside, head, lm)


class HeadExport(Export):
    """A format that can be read back as a head."""

    @abstractmethod
    def read(self, folder: str | Path, lm: TextLM) -> MTPHead:
        """The head in ``folder``, in evaluation mode and bound to its trunk ``lm``.

        Raises FileNotFoundError for missing files and ValueError for damaged ones and for what no head of ours is.
        """


def check_free(folder: Path) -> None:
    """Raise ValueError, before any work, unless ``folder`` is new or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty, so it is not replaced; give another folder.")


# -- what heads have to do with formats -----------------------------------------------------------------------------
def unlike_medusa(head: MTPHead) -> str | None:
    """The obstacle of a head that is not Medusa's in all but name: residual blocks at adjacent offsets."""
    if isinstance(head, Medusa | Leap) and head.adjacent:
        return None
    return f"it is not made of residual blocks for the offsets 2, 3, ... (its offsets are {list(head.offsets)})"


def reads_more(head: MTPHead) -> str | None:
    """The obstacle of a head that reads other states than those of the trunk's top layer."""
    if head.taps == (-1,) and head.mix.kind == "last":
        return None
    return f"it reads the layers {list(head.taps)} by {head.mix.kind!r}, not the last one alone"


def shares_bias(head: MTPHead, lm: TextLM) -> str | None:
    """The obstacle of a head without output layers of its own on a trunk whose output layer has a bias."""
    if head.private is None and getattr(lm.model.get_output_embeddings(), "bias", None) is not None:
        return "the output layer that it shares with its trunk has a bias"
    return None


def output_rows(head: MTPHead) -> list[Tensor]:
    """The output layers ``[num_tokens, D]`` in float32: the head's own, one per offset, or else the trunk's."""
    own = head.private
    return [head.unembedding().float()] if own is None else [layer.get_parameter("weight").float() for layer in own]


def restored(head: MTPHead, state: Mapping[str, Tensor], lm: TextLM, folder: Path) -> MTPHead:
    """``head`` with the weights ``state``, bound to ``lm`` and on its device."""
    if head.private is not None:
        state = {**state, "private.started": torch.tensor(True)}
    load_weights(head, state, folder)
    head.bind(Binding(**lm.binding()))
    return head.to(lm.device).eval()


def shape_of(lm: TextLM, **other: Any) -> TrunkShape:
    """The sizes of ``lm``, with ``other`` in place of some of them."""
    return TrunkShape(**{**lm.shape(), **other})


# -- files ----------------------------------------------------------------------------------------------------------
def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write ``tensors`` as they are, each with memory of its own."""
    stored = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    save_file(stored, path, {"format": "pt"})


def save_json(path: Path, entries: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(entries, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Errors as for :meth:`HeadExport.read`."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no exported head in {path.parent}: {path.name} is missing; check the path.")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged; export the head again.") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Errors as for :meth:`HeadExport.read`."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no exported head in {path.parent}: {path.name} is missing; check the path.")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or damaged; export the head again.") from error


def read_folder(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """``config.json`` and ``model.safetensors``. Errors as for :meth:`HeadExport.read`."""
    return read_json(Path(folder) / CONFIG), read_tensors(Path(folder) / WEIGHTS)


# -- trunks ---------------------------------------------------------------------------------------------------------
def open_trunk(folder: str | Path) -> TextLM:
    """The trunk saved in ``folder``, in the precision that it is stored in. Errors as for ``TextLM.from_folder``."""
    return TextLM.from_folder(folder, None)


def save_trunk(folder: Path, lm: TextLM) -> None:
    """Write the trunk as an ordinary model with its tokenizer.

    Its fingerprint goes along, so that heads that were trained on it know it in its new place. Errors as for
    :meth:`TextLM.check_layers`.
    """
    lm.check_layers()
    lm.model.save_pretrained(folder)
    if lm.tokenizer is not None:
        lm.tokenizer.save_pretrained(folder)
    if lm.fingerprint:
        save_json(folder / SOURCE, {"sha256": lm.fingerprint})
