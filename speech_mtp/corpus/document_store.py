"""Documents as tokens on disk, made once: what trunks are trained on.

A folder holds for each split ``<split>.tokens``, all documents one after another (16 or 32 bits a token), and
``documents.i64``, a row (split, tokens, bytes) for each document, which is written after its tokens: a folder cut off
by a kill is valid up to its last whole row, and is gone on with. The tokenizer's files lie beside them. The manifest
comes last; it names sources and licences. Every document begins with the start token and, unless it was cut, ends with
the end token::

    <start> d o c u m e n t <end> <start> a n o t h e r <end> ...
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from speech_mtp.corpus.documents.base import Document, DocumentSource
from speech_mtp.corpus.texts import stable_fraction
from speech_mtp.files import open_at, replacing
from speech_mtp.lm.backbone import load_tokenizer
from speech_mtp.lm.document_ids import Encoder
from speech_mtp.progress import progress

SPLITS = ("train", "dev")
MANIFEST, MAKING, ROWS = "manifest.json", "making.json", "documents.i64"
BATCH_BYTES = 1 << 20
"""Text that is tokenised and written at a time."""


def is_dev(document: Document, dev_fraction: float) -> bool:
    """Whether the document is held out: the same on every machine, whatever other documents there are."""
    return stable_fraction(f"split:{document.key}") < dev_fraction


def held_out(source: DocumentSource, dev_fraction: float) -> Iterator[Document]:
    """The documents of the dev split that are not empty."""
    return (document for document in source.documents() if document.text.strip() and is_dev(document, dev_fraction))


def make_store(
    out: Path, sources: Mapping[str, DocumentSource], tokenizer: Path, dev_fraction: float, inputs: Any
) -> dict[str, Any]:
    """Write the documents of ``sources``, or go on with that; returns the manifest. ``inputs``, any JSON, says what
    they are: other inputs, and files that have changed, begin anew. Empty documents are left out. Raises ValueError
    where a split has no text."""
    named = [inputs, {name: source.stamp() for name, source in sources.items()}]
    digest = hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:16]
    known = _read(out / MANIFEST)
    if known.get("digest") == digest:
        return known
    encoder = Encoder(load_tokenizer(tokenizer))
    if _read(out / MAKING).get("digest") != digest:
        _begin(out, digest, encoder)
    counted = _Counted(sources)
    _write(out, counted, encoder, dev_fraction)
    manifest = {
        "digest": digest,
        "inputs": inputs,
        "vocab_size": encoder.vocab_size,
        "sources": counted.report(),
        **_figures(out, dev_fraction),
    }
    with replacing(out / MANIFEST) as path:
        path.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return manifest


def _figures(out: Path, dev_fraction: float) -> dict[str, dict[str, int]]:
    """Documents, tokens and bytes of each split."""
    found, rows = {}, _rows(out)
    for number, split in enumerate(SPLITS):
        mine = rows[rows[:, 0] == number]
        if not len(mine):
            raise ValueError(
                f"No document is in the {split} split; give more documents, or another dev_fraction ({dev_fraction})."
            )
        found[split] = {"documents": len(mine), "tokens": int(mine[:, 1].sum()), "bytes": int(mine[:, 2].sum())}
    return found


class _Counted:
    """The documents of all sources that are not empty, counted on their way."""

    def __init__(self, sources: Mapping[str, DocumentSource]) -> None:
        self._sources = sources
        self._counts = {name: {"documents": 0, "empty": 0, "bytes": 0} for name in sources}

    def __iter__(self) -> Iterator[Document]:
        for name, source in self._sources.items():
            count = self._counts[name]
            for document in source.documents():
                if not document.text.strip():
                    count["empty"] += 1
                    continue
                count["documents"] += 1
                count["bytes"] += len(document.text.encode())
                yield document

    def report(self) -> list[dict[str, Any]]:
        pairs = self._sources.items()
        return [{"name": name, "licence": source.licence, **self._counts[name]} for name, source in pairs]


def _begin(out: Path, digest: str, encoder: Encoder) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST, MAKING, ROWS, *(f"{split}.tokens" for split in SPLITS)):
        (out / name).unlink(missing_ok=True)
    encoder.tokenizer.save_pretrained(out)
    dtype = "<u2" if encoder.vocab_size <= 1 << 16 else "<u4"
    with replacing(out / MAKING) as path:
        path.write_text(json.dumps({"digest": digest, "dtype": dtype}), encoding="utf-8")


def _write(out: Path, documents: Iterable[Document], encoder: Encoder, dev_fraction: float) -> None:
    """Append what is missing behind the whole rows that there are."""
    dtype = np.dtype(_read(out / MAKING)["dtype"])
    done = _rows(out)
    sizes = [int(done[done[:, 0] == number, 1].sum()) * dtype.itemsize for number in range(len(SPLITS))]
    paths = [out / f"{split}.tokens" for split in SPLITS]
    files = [open_at(path, size) for path, size in zip(paths, sizes, strict=True)]
    rows = open_at(out / ROWS, done.nbytes)
    for batch in progress(_batches(islice(documents, len(done), None)), "documents", "MB"):
        found = []
        for document, ids in zip(batch, encoder.ids([d.text for d in batch], [d.ended for d in batch]), strict=True):
            number = int(is_dev(document, dev_fraction))
            ids.astype(dtype).tofile(files[number])
            found.append((number, len(ids), len(document.text.encode())))
        for file in files:
            file.flush()
        np.array(found, "<i8").tofile(rows)
        rows.flush()
    for file in (*files, rows):
        file.close()


def _batches(documents: Iterator[Document]) -> Iterator[list[Document]]:
    """Documents of about ``BATCH_BYTES``."""
    for first in documents:
        batch, size = [first], len(first.text)
        while size < BATCH_BYTES and (more := next(documents, None)) is not None:
            batch.append(more)
            size += len(more.text)
        yield batch


def _rows(folder: Path) -> np.ndarray:
    """The whole rows ``[N, 3]`` of a folder."""
    path = folder / ROWS
    values = np.fromfile(path, "<i8") if path.exists() else np.zeros(0, "<i8")
    return values[: len(values) // 3 * 3].reshape(-1, 3)


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


class DocumentStore:
    """Reads what :func:`make_store` wrote. Raises FileNotFoundError where it is missing or not complete."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, _read(folder / MANIFEST)
        if not self.manifest:
            raise FileNotFoundError(f"{folder} holds no complete documents; run the stage `documents` that makes it.")
        self.vocab_size: int = self.manifest["vocab_size"]
        self._dtype = np.dtype(_read(folder / MAKING)["dtype"])

    def tokens(self, split: str) -> np.ndarray:
        """All tokens of ``split`` ``[N]``, memory-mapped."""
        return np.memmap(self.folder / f"{split}.tokens", self._dtype, mode="r")

    def starts(self, split: str) -> np.ndarray:
        """Where the documents of ``split`` begin in its tokens ``[n]``, ascending from 0."""
        lengths = self._rows[self._rows[:, 0] == SPLITS.index(split), 1]
        return np.fromiter(chain([0], np.cumsum(lengths)[:-1]), np.int64)

    def labels_per_byte(self, split: str) -> float:
        """How many tokens there are to predict (all but start tokens) for a byte of text."""
        figures = self.manifest[split]
        return float((figures["tokens"] - figures["documents"]) / figures["bytes"])

    @cached_property
    def _rows(self) -> np.ndarray:
        return _rows(self.folder)
