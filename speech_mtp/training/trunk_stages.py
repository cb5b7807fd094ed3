"""The stages of trunks: documents as tokens on disk, and what is trained on them."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from speech_mtp import hub, plugins
from speech_mtp.corpus.continuations import write_continuations
from speech_mtp.corpus.document_store import DocumentStore, make_store
from speech_mtp.lm.backbone import load_tokenizer
from speech_mtp.lm.byte_tokens import write_byte_tokenizer
from speech_mtp.lm.causal_lm import CausalLM
from speech_mtp.lm.llama_folder import read_llama
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.training.distributed import Workers
from speech_mtp.training.stages import ContinuationsRun, DocumentsRun, TrunkRun
from speech_mtp.training.trunk import TrunkTask

BYTES = "bytes"
CONTINUATIONS = "continuations.jsonl"


def documents(stage: DocumentsRun) -> dict[str, Any]:
    """Write the documents; the figures of each split."""
    sources = {name: plugins.build("corpus.documents", spec) for name, spec in stage.sources.items()}
    inputs = stage.model_dump(mode="json", include={"sources", "tokenizer", "dev_fraction"})
    with TemporaryDirectory() as aside:
        folder = Path(aside)
        if stage.tokenizer == BYTES:
            write_byte_tokenizer(folder)
        else:
            folder = hub.find_backbone(stage.tokenizer)
        manifest = make_store(stage.out, sources, folder, stage.dev_fraction, inputs)
    return {"out": str(stage.out), "train": manifest["train"], "dev": manifest["dev"]}


def continuations(stage: ContinuationsRun) -> dict[str, Any]:
    """Write the continuations; how many are new."""
    store = DocumentStore(stage.documents)
    folder = hub.find_backbone(stage.model)
    _check_tokenizer(folder, stage.model, store)
    lm = TextLM.from_folder(folder, torch.float32).to(stage.torch_device()).prepare()
    stage.out.mkdir(parents=True, exist_ok=True)
    path = stage.out / CONTINUATIONS
    return {"out": str(path), "new": write_continuations(lm, store, path, stage.write)}


def trunk_task(stage: TrunkRun, workers: Workers | None = None) -> TrunkTask:
    """What ``stage`` trains, before its first step. Raises ValueError where the documents are not the trunk's."""
    torch.manual_seed(stage.loop.seed)
    store = DocumentStore(stage.documents)
    objective = plugins.build("objectives", stage.objective)
    for teacher in objective.teachers():
        if not teacher.is_dir():
            raise FileNotFoundError(
                f"There is no teacher in {teacher}; train one (recipes/objectives/teacher.yaml), or name a folder."
            )
        _check_tokenizer(teacher, str(teacher), store)
    if isinstance(stage.model, str):
        folder = hub.find_backbone(stage.model)
        lm = read_llama(folder)
        _check_tokenizer(folder, stage.model, store)
    else:
        lm = CausalLM(stage.model, store.vocab_size)
    return TrunkTask(lm, store, stage.task, stage.torch_device(), workers, objective, stage.loop.steps)


def _check_tokenizer(folder: Path, name: str, store: DocumentStore) -> None:
    if load_tokenizer(folder).get_vocab() != load_tokenizer(store.folder).get_vocab():
        raise ValueError(
            f"The documents in {store.folder} have another tokenizer than {name}; make them with run.tokenizer={name}."
        )
