"""What names the weights of a language model: checkpoints trained on one model refuse another."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from tqdm import tqdm

SOURCE = "source.json"
"""File of a converted folder that holds the fingerprint of the file it was converted from (key ``sha256``)."""


def fingerprint_of(folder: Path) -> str:
    """Sha256 (hex) that names the weights of ``folder``.

    For a converted folder that of the file it came from, as recorded there; otherwise that of its safetensors
    file, or of all of its files' digests in the order of their names. Raises FileNotFoundError without weights.
    """
    if (folder / SOURCE).is_file():
        return str(json.loads((folder / SOURCE).read_text(encoding="utf-8"))["sha256"])
    check_weights(folder)
    digests = [sha256(path) for path in sorted(folder.glob("*.safetensors"))]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def check_weights(folder: Path) -> None:
    """Raise FileNotFoundError, in one sentence, unless ``folder`` holds weights."""
    if not any(folder.glob("*.safetensors")):
        raise FileNotFoundError(f"There are no weights in {folder}: no *.safetensors file; download the model again.")


def sha256(path: Path) -> str:
    """Hex digest of a file; a progress bar appears when that takes more than a second."""
    digest = hashlib.sha256()
    bar = tqdm(total=path.stat().st_size, desc=f"Checking {path.name}", unit="B", unit_scale=True, delay=1, leave=False)
    with path.open("rb") as file, bar:
        while block := file.read(1 << 22):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def digest_of(module: torch.nn.Module) -> str:
    """A hash of all weights and buffers of ``module``."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
