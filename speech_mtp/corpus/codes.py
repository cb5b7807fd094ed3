"""The corpus as a talker reads it: codes, alignment and timbre of every utterance, some hundredth of its sound.

A folder holds ``rows.jsonl`` and ``codes.safetensors``: ``frames [K, total]`` int16, ``unit [total]`` int16 (the text
unit of each frame), ``timbre [rows, E]`` float16 (E is 0 for a codec without timbre), and ``codec.json`` with what a
talker must know of the codec. The backbone's states are not stored; they are rebuilt from the text.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from speech_mtp import audio, plugins
from speech_mtp.codecs.base import Codec
from speech_mtp.codecs.decoupled import LOSS_WEIGHTS
from speech_mtp.corpus.align import at_frame_rate, unit_of_frame
from speech_mtp.corpus.store import SAMPLE_RATE, AudioStore
from speech_mtp.corpus.told_durations import unit_at_frames
from speech_mtp.files import replacing
from speech_mtp.text.phonemes import parse
from speech_mtp.types import CodecSpec, Codes

CODEC = "codec.json"


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


@dataclass(frozen=True)
class CodecFacts:
    """What ``codec.json`` tells of the codec that made a corpus. Older ones, which lack ``loss_weights``, are of the
    decoupled codec."""

    codebook_sizes: tuple[int, ...]
    frame_rate_hz: float
    timbre_dim: int
    loss_weights: tuple[float, ...] = LOSS_WEIGHTS

    @classmethod
    def of(cls, spec: CodecSpec) -> Self:
        return cls(spec.codebook_sizes, spec.frame_rate_hz, spec.timbre_dim, spec.loss_weights)


@dataclass
class CodeCorpus:
    """All rows with their tensors in memory (fifty hours are about twenty megabytes). ``codec`` is None where no
    ``codec.json`` lay beside the codes."""

    rows: list[CodeRow]
    frames: Tensor
    unit: Tensor
    timbre: Tensor
    codec: CodecFacts | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, index: int) -> tuple[Tensor, Tensor]:
        """Codes ``[K, F]`` and unit of each frame ``[F]``, int64."""
        row = self.rows[index]
        part = slice(row.start, row.start + row.frames)
        return self.frames[:, part].long(), self.unit[part].long()

    def told_apart(self, voices: Sequence[str]) -> CodeCorpus:
        """The corpus as a speech LM with these ``config.voices`` reads it: if there are any, their one-hot vectors take
        the place of timbre. Raises ValueError for a row of another voice."""
        if not voices:
            return self
        unknown = sorted({row.voice for row in self.rows} - set(voices))
        if unknown:
            hint = plugins.nearest(unknown[0], voices)
            raise ValueError(f"The speech LM was not trained on the voice {unknown[0]!r} of the code corpus; {hint}.")
        place = torch.tensor([list(voices).index(row.voice) for row in self.rows])
        return replace(self, timbre=torch.nn.functional.one_hot(place, len(voices)).float())


def load_codes(*folders: Path) -> CodeCorpus:
    """Read folders written by :func:`save_codes`; several act as one. Raises ValueError for codes of two codecs."""
    parts = [_load_one(folder) for folder in folders]
    codecs = {part.codec: folder for part, folder in zip(parts, folders, strict=True) if part.codec is not None}
    if len(codecs) > 1:
        first, second = list(codecs.values())[:2]
        raise ValueError(f"The codes in {first} and in {second} are of different codecs; encode both with one codec.")
    rows: list[CodeRow] = []
    total = 0
    for part in parts:
        rows += [replace(row, start=row.start + total) for row in part.rows]
        total += part.frames.shape[1]
    frames, unit, timbre = (
        torch.cat([getattr(p, k) for p in parts], d) for k, d in (("frames", 1), ("unit", 0), ("timbre", 0))
    )
    return CodeCorpus(rows, frames, unit, timbre, next(iter(codecs), None))


def _load_one(folder: Path) -> CodeCorpus:
    if not (folder / "codes.safetensors").exists():
        raise FileNotFoundError(f"{folder} holds no codes.safetensors; run the encode stage of the recipe first.")
    rows = [CodeRow(**json.loads(line)) for line in (folder / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    tensors = load_file(folder / "codes.safetensors")
    return CodeCorpus(rows, tensors["frames"], tensors["unit"], tensors["timbre"], _read_facts(folder))


def _write_facts(corpus: CodeCorpus, folder: Path) -> None:
    if corpus.codec is not None:
        with replacing(folder / CODEC) as path:
            path.write_text(json.dumps(asdict(corpus.codec)), encoding="utf-8")


def _read_facts(folder: Path) -> CodecFacts | None:
    if not (folder / CODEC).is_file():
        return None
    entries = json.loads((folder / CODEC).read_text(encoding="utf-8"))
    return CodecFacts(**{k: tuple(v) if isinstance(v, list) else v for k, v in entries.items()})  # type: ignore[arg-type]


def save_codes(corpus: CodeCorpus, folder: Path) -> None:
    """Write all files under temporary names and rename them."""
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
    _write_facts(corpus, folder)


@torch.inference_mode()
def encode_batches(
    codec: Codec, aligner: Codec, store: AudioStore, batches: list[list[int]], device: str = "cpu"
) -> CodeCorpus:
    """Encode ``batches`` of rows of a store with ``codec``. Rows whose teacher told where its phonemes end are aligned
    by that, the others by the phoneme head of ``aligner``, which may be the same codec; rows that cannot be aligned are
    left out. Either hears the audio at its own sample rate."""
    codec, aligner = codec.to(device).eval(), aligner.to(device).eval()
    spec, heard_hz = codec.spec, aligner.spec.frame_rate_hz
    rows: list[CodeRow] = []
    frames = [torch.zeros(spec.num_streams, 0, dtype=torch.long)]
    units, timbres = [torch.zeros(0, dtype=torch.long)], [torch.zeros(0, spec.timbre_dim)]
    total = 0
    for indices in batches:
        waves = [store.wave(i) for i in indices]
        codes = _encode(codec, waves, device)
        heard = log_probs = None
        for b, i in enumerate(indices):
            row, n = store.rows[i], int(codes.lengths[b])
            if row.ends_ms is not None:
                unit = unit_at_frames(row.ends_ms, n, spec.frame_rate_hz)
            else:
                if heard is None or log_probs is None:
                    heard = codes if aligner is codec else _encode(aligner, waves, device)
                    log_probs = aligner.phoneme_log_probs(heard).cpu()
                phonemes = torch.tensor([u.id for u in parse(row.phonemes)])
                found = unit_of_frame(log_probs[b, : int(heard.lengths[b])], phonemes)
                if found is None:
                    continue
                unit = at_frame_rate(found, heard_hz, spec.frame_rate_hz, n)
            rows.append(CodeRow(row.id, row.voice, row.text, row.phonemes, row.split, total, n))
            frames.append(codes.frames[b, :, :n].cpu())
            units.append(unit)
            timbres.append(torch.zeros(1, 0) if codes.timbre is None else codes.timbre[b, None].cpu())
            total += n
    return CodeCorpus(rows, torch.cat(frames, 1), torch.cat(units), torch.cat(timbres), CodecFacts.of(spec))


def _encode(codec: Codec, waves: list[Tensor], device: str) -> Codes:
    """Recordings ``[S]`` of a store -> their codes."""
    waves = [audio.resample(wave, SAMPLE_RATE, codec.spec.sample_rate) for wave in waves]
    lengths = torch.tensor([len(wave) for wave in waves], device=device)
    return codec.encode(torch.nn.utils.rnn.pad_sequence(waves, batch_first=True).unsqueeze(1).to(device), lengths)


def batches_of(store: AudioStore, batch: int, part: tuple[int, int] = (0, 1)) -> list[list[int]]:
    """Batches of the store's rows, shortest first.

    ``part`` (i, n) takes every n-th batch from the i-th on, so that n processes share the work.
    """
    first, every = part
    order = sorted(range(len(store)), key=lambda i: store.rows[i].samples)
    return [order[at : at + batch] for at in range(first * batch, len(order), every * batch)]
