"""The corpus as a talker reads it: codes, alignment and timbre of every utterance, small enough to commit.

A folder holds ``rows.jsonl`` and ``codes.safetensors``: ``frames [K, total]`` int16, ``unit [total]`` int16 (the text
unit of each frame), ``timbre [rows, E]`` float16. The backbone's states are not stored; they are rebuilt from the text.
A *packed* folder holds the same in one compressed file ``codes.npz``, a third of the size, to be kept with a recipe.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from speech_mtp.codecs.decoupled import Decoupled
from speech_mtp.corpus.align import unit_of_frame
from speech_mtp.corpus.store import AudioStore
from speech_mtp.files import replacing
from speech_mtp.text.phonemes import parse

PACKED = "codes.npz"


@dataclass(frozen=True)
class CodeRow:
    """One utterance: its frames are ``start : start + frames`` of the folder's arrays."""

    id: str
    voice: str
    text: str
    phonemes: str
    split: str
    start: int
    frames: int


@dataclass
class CodeCorpus:
    """All rows with their tensors in memory (fifty hours are about twenty megabytes)."""

    rows: list[CodeRow]
    frames: Tensor
    unit: Tensor
    timbre: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, index: int) -> tuple[Tensor, Tensor]:
        """Codes ``[K, F]`` and unit of each frame ``[F]``, int64."""
        row = self.rows[index]
        part = slice(row.start, row.start + row.frames)
        return self.frames[:, part].long(), self.unit[part].long()


def load_codes(*folders: Path) -> CodeCorpus:
    """Read folders written by :func:`save_codes`; several act as one."""
    parts = [_load_one(folder) for folder in folders]
    rows: list[CodeRow] = []
    total = 0
    for part in parts:
        rows += [replace(row, start=row.start + total) for row in part.rows]
        total += part.frames.shape[1]
    frames, unit, timbre = (
        torch.cat([getattr(p, k) for p in parts], d) for k, d in (("frames", 1), ("unit", 0), ("timbre", 0))
    )
    return CodeCorpus(rows, frames, unit, timbre)


def _load_one(folder: Path) -> CodeCorpus:
    if (folder / PACKED).exists():
        return _unpack(folder / PACKED)
    if not (folder / "codes.safetensors").exists():
        raise FileNotFoundError(f"{folder} holds no codes.safetensors; run the encode stage of the recipe first.")
    rows = [CodeRow(**json.loads(line)) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    tensors = load_file(folder / "codes.safetensors")
    return CodeCorpus(rows, tensors["frames"], tensors["unit"], tensors["timbre"])


def pack_codes(corpus: CodeCorpus, folder: Path) -> None:
    """Write the packed form: bytes apart, so that they compress; units as steps. Nothing is lost."""
    folder.mkdir(parents=True, exist_ok=True)
    codes = corpus.frames.numpy().astype(np.uint16)
    steps = np.diff(corpus.unit.numpy().astype(np.int64), prepend=0)
    steps[[row.start for row in corpus.rows]] = 0
    if steps.min() < 0 or steps.max() > 255 or any(int(corpus.unit[row.start]) for row in corpus.rows):
        raise ValueError("Only aligned codes can be packed: units that start at 0 and never fall.")
    rows = "".join(json.dumps(asdict(row)) + "\n" for row in corpus.rows).encode()
    with replacing(folder / PACKED) as path, path.open("wb") as file:
        np.savez_compressed(
            file,
            rows=np.frombuffer(rows, np.uint8),
            low=(codes & 255).astype(np.uint8),
            high=(codes >> 8).astype(np.uint8),
            steps=steps.astype(np.uint8),
            timbre=corpus.timbre.numpy().astype(np.float16),
        )


def _unpack(path: Path) -> CodeCorpus:
    with np.load(path, allow_pickle=False) as file:
        rows = [CodeRow(**json.loads(line)) for line in file["rows"].tobytes().decode().splitlines()]
        frames = file["low"].astype(np.int16) + (file["high"].astype(np.int16) << 8)
        total = file["steps"].astype(np.int64).cumsum()
        timbre = file["timbre"]
    unit = np.empty_like(total)
    for row in rows:
        part = slice(row.start, row.start + row.frames)
        unit[part] = total[part] - total[row.start]
    return CodeCorpus(rows, torch.from_numpy(frames), torch.from_numpy(unit.astype(np.int16)), torch.from_numpy(timbre))


def save_codes(corpus: CodeCorpus, folder: Path) -> None:
    """Write both files under temporary names and rename them."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        "frames": corpus.frames.to(torch.int16).contiguous(),
        "unit": corpus.unit.to(torch.int16).contiguous(),
        "timbre": corpus.timbre.half().contiguous(),
    }
    with replacing(folder / "codes.safetensors") as path:
        save_file(tensors, path)
    with replacing(folder / "rows.jsonl") as path:
        path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in corpus.rows), encoding="utf-8")


def encode_store(
    codec: Decoupled, store: AudioStore, batch: int = 16, device: str = "cpu", part: tuple[int, int] = (0, 1)
) -> CodeCorpus:
    """Encode and align the batches of :func:`batches_of`."""
    return encode_batches(codec, store, batches_of(store, batch, part), device)


@torch.inference_mode()
def encode_batches(codec: Decoupled, store: AudioStore, batches: list[list[int]], device: str = "cpu") -> CodeCorpus:
    """Encode and align ``batches`` of rows of a store; those that cannot be aligned are left out."""
    phonemes = codec.phonemes
    if phonemes is None:
        raise ValueError("This codec has no phoneme head, so its codes cannot be aligned; use the training checkpoint.")
    codec = codec.to(device).eval()
    rows: list[CodeRow] = []
    frames = [torch.zeros(len(codec.spec.codebook_sizes), 0, dtype=torch.long)]
    units, timbres = [torch.zeros(0, dtype=torch.long)], [torch.zeros(0, codec.spec.timbre_dim)]
    total = 0
    for indices in batches:
        waves = [store.wave(i) for i in indices]
        lengths = torch.tensor([len(w) for w in waves], device=device)
        wave = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True).unsqueeze(1).to(device)
        codes = codec.encode(wave, lengths)
        mask = (torch.arange(codes.frames.shape[2], device=device) < codes.lengths[:, None])[..., None].float()
        content, _ = codec.values(codes.frames)
        log_probs = phonemes(content, mask).log_softmax(-1).cpu()
        for b, i in enumerate(indices):
            row, n = store.rows[i], int(codes.lengths[b])
            unit = unit_of_frame(log_probs[b, :n], torch.tensor([u.id for u in parse(row.phonemes)]))
            if unit is None:
                continue
            rows.append(CodeRow(row.id, row.voice, row.text, row.phonemes, row.split, total, n))
            frames.append(codes.frames[b, :, :n].cpu())
            units.append(unit)
            assert codes.timbre is not None
            timbres.append(codes.timbre[b, None].cpu())
            total += n
    return CodeCorpus(rows, torch.cat(frames, 1), torch.cat(units), torch.cat(timbres))


def batches_of(store: AudioStore, batch: int, part: tuple[int, int] = (0, 1)) -> list[list[int]]:
    """Batches of the store's rows, shortest first.

    ``part`` (i, n) takes every n-th batch from the i-th on, so that n processes share the work.
    """
    first, every = part
    order = sorted(range(len(store)), key=lambda i: store.rows[i].samples)
    return [order[at : at + batch] for at in range(first * batch, len(order), every * batch)]
