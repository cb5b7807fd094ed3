"""A trunk goes on with passages of documents: they are the data's, the rest is its own, and a kill loses no batch."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from speech_mtp import plugins
from speech_mtp.corpus.continuations import ContinuationConfig, passages
from speech_mtp.corpus.document_store import DocumentStore, make_store
from speech_mtp.corpus.documents.base import Document, DocumentSource
from speech_mtp.lm.backbone import load_tokenizer
from speech_mtp.lm.byte_tokens import write_byte_tokenizer
from speech_mtp.lm.document_ids import Encoder
from speech_mtp.training.runs import run
from speech_mtp.training.stages import TrainConfig
from tests.lm.tiny import tiny_tokenizer
from tests.training.tiny_documents import counting_store, tiny_task

WRITE = {"texts": 6, "prompt_tokens": 5, "max_new_tokens": 7, "batch": 4, "seed": 3}


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> tuple[DocumentStore, Path]:
    folder = tmp_path_factory.mktemp("trunk")
    store = counting_store(folder / "documents")
    (folder / "export").mkdir()
    tiny_task(store).export(folder / "export")
    return store, folder / "export"


class Japanese(DocumentSource):
    licence = "none"
    text = "\u65e5\u672c\u8a9e\u306e\u6587\u7ae0" * 5

    def documents(self) -> Iterator[Document]:
        for number in range(8):
            yield Document(f"{number}", self.text)


def stage(trunk: tuple[DocumentStore, Path], out: Path, **write: object) -> TrainConfig:
    entries = {"kind": "continuations", "out": out, "model": str(trunk[1]), "documents": trunk[0].folder}
    return TrainConfig(run={**entries, "device": "cpu", "write": {**WRITE, **write}})


def lines(out: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (out / "continuations.jsonl").read_text("utf-8").splitlines()]


def test_passages_are_of_the_train_split_and_within_a_document(trunk: tuple[DocumentStore, Path]) -> None:
    store, _ = trunk
    tokenizer = load_tokenizer(store.folder)
    found = passages(store, tokenizer, ContinuationConfig(texts=50, prompt_tokens=9, seed=1))
    whole = tokenizer.decode(store.tokens("train").tolist(), skip_special_tokens=False)
    end = tokenizer.eos_token
    documents = [text for text in whole.split(end) if text]
    assert all(any(text in document for document in documents) for text in found)
    assert {len(text) for text in found} == {9}
    assert len(set(found)) > 5


def test_texts_begin_with_the_data_and_go_on(trunk: tuple[DocumentStore, Path], tmp_path: Path) -> None:
    assert run(stage(trunk, tmp_path))["new"] == 6
    written = lines(tmp_path)
    assert [line["index"] for line in written] == list(range(6))
    assert all(line["text"].startswith(line["prompt"]) for line in written)
    assert any(len(line["text"]) > len(line["prompt"]) for line in written)
    again = {"name": "selfwritten", "paths": [str(tmp_path / "continuations.jsonl")]}
    documents = list(plugins.build("corpus.documents", again).documents())
    assert [document.text for document in documents] == [line["text"] for line in written]
    assert [document.ended for document in documents] == [line["ended"] for line in written]
    assert False in [line["ended"] for line in written]


def test_characters_that_are_cut_are_left_out(tmp_path: Path) -> None:
    tokenizer = tmp_path / "bytes"
    tokenizer.mkdir()
    write_byte_tokenizer(tokenizer)
    make_store(tmp_path / "store", {"a": Japanese()}, tokenizer, 0.5, 1)
    store = DocumentStore(tmp_path / "store")
    found = passages(store, load_tokenizer(store.folder), ContinuationConfig(texts=30, prompt_tokens=10))
    assert all(text and set(text) <= set(Japanese.text) for text in found)


def test_a_document_that_was_cut_has_no_end(tmp_path: Path, tokenizer: Path) -> None:
    encoder = Encoder(load_tokenizer(tokenizer))
    whole, cut = encoder.ids(["ab", "ab"], [True, False])
    assert whole.tolist() == [*cut.tolist(), encoder.end]


def test_a_file_that_is_there_is_gone_on_with(trunk: tuple[DocumentStore, Path], tmp_path: Path) -> None:
    run(stage(trunk, tmp_path / "whole"))
    run(stage(trunk, tmp_path / "part", texts=4))
    assert run(stage(trunk, tmp_path / "part"))["new"] == 2
    assert lines(tmp_path / "part") == lines(tmp_path / "whole")
    for changed in ({"seed": 4}, {"temperature": 0.5}, {"max_new_tokens": 8}):
        with pytest.raises(ValueError, match=f"was made with {next(iter(changed))}"):
            run(stage(trunk, tmp_path / "part", **changed))
    assert lines(tmp_path / "part") == lines(tmp_path / "whole")


def test_what_is_drawn_depends_on_the_seed(
    trunk: tuple[DocumentStore, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speech_mtp.corpus.continuations.passages", lambda *_: ["1 2"] * 6)
    for seed in (3, 90):
        run(stage(trunk, tmp_path / str(seed), seed=seed))
    assert lines(tmp_path / "3") != lines(tmp_path / "90")


def test_another_tokenizer_is_refused(trunk: tuple[DocumentStore, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(trunk[1], other)
    tiny_tokenizer().save_pretrained(other)
    with pytest.raises(ValueError, match="another tokenizer"):
        run(stage((trunk[0], other), tmp_path / "out"))
