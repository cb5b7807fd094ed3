"""A few documents as bytes on disk, and a trunk task on them, for tests of trunks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from speech_mtp.corpus.document_store import DocumentStore, make_store
from speech_mtp.corpus.documents.base import Document, DocumentSource
from speech_mtp.lm.byte_tokens import write_byte_tokenizer
from speech_mtp.lm.causal_lm import CausalLM
from speech_mtp.objectives.base import Objective
from speech_mtp.training.distributed import Workers
from speech_mtp.training.trunk import TrunkTask, TrunkTaskConfig

CPU = torch.device("cpu")


class Counting(DocumentSource):
    """Documents that count, each from another number on: ``7 8 9 ...``."""

    licence = "none"

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size

    def documents(self) -> Iterator[Document]:
        for first in range(self.count):
            text = " ".join(str(number % 10) for number in range(first, first + self.size + first % 3))
            yield Document(f"{first}", text)


def counting_store(folder: Path, count: int = 60, size: int = 12) -> DocumentStore:
    """In ``folder``, made if it is not there."""
    tokenizer = folder.parent / f"{folder.name}_tokenizer"
    tokenizer.mkdir(parents=True, exist_ok=True)
    write_byte_tokenizer(tokenizer)
    make_store(folder, {"counting": Counting(count, size)}, tokenizer, 0.2, [count, size])
    return DocumentStore(folder)


def tiny_task(
    store: DocumentStore, workers: Workers | None = None, objective: Objective | None = None, **more: Any
) -> TrunkTask:
    """Four rows of 32 bytes a step."""
    torch.manual_seed(0)
    config = TrunkTaskConfig(**{"batch": 4, "length": 32, "amp": False, **more})
    return TrunkTask(CausalLM.tiny(), store, config, CPU, workers, objective)
