"""Documents: every source, their split, and the tokens on disk, which a kill cuts at a whole document."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from speech_mtp import plugins
from speech_mtp.corpus import document_store
from speech_mtp.corpus.document_store import DocumentStore, held_out, is_dev, make_store
from speech_mtp.corpus.documents.base import Document, DocumentSource
from speech_mtp.corpus.documents.files import Files
from speech_mtp.corpus.documents.stdlib import Stdlib, docstrings
from speech_mtp.lm.backbone import load_tokenizer
from speech_mtp.lm.byte_tokens import END
from speech_mtp.lm.document_ids import Encoder
from tests.lm.tiny import tiny_tokenizer

TEXTS = [f"document {i}, {'word ' * (i % 7)}é{END}" for i in range(40)] + ["", " \n"]


class Given(DocumentSource):
    """Documents of ``texts``; after ``most`` of them the program dies."""

    licence = "ours"

    def __init__(self, texts: list[str], most: int | None = None) -> None:
        self.texts, self.most = texts, most

    def documents(self) -> Iterator[Document]:
        for number, text in enumerate(self.texts):
            if number == self.most:
                raise KeyboardInterrupt
            yield Document(text, text)


def made(out: Path, tokenizer: Path, source: DocumentSource, inputs: Any = 1, dev: float = 0.2) -> DocumentStore:
    make_store(out, {"given": source}, tokenizer, dev, inputs)
    return DocumentStore(out)


# -- the store ------------------------------------------------------------------------------------------------------
def test_documents_lie_one_after_another_between_start_and_end(tmp_path: Path, tokenizer: Path) -> None:
    store = made(tmp_path / "out", tokenizer, Given(TEXTS))
    told = [text for text in TEXTS if text.strip()]
    for split in ("train", "dev"):
        mine = [text for text in told if is_dev(Document(text, text), 0.2) == (split == "dev")]
        tokens, starts = store.tokens(split), store.starts(split)
        assert len(mine) == len(starts) > 3
        for text, row in zip(mine, np.split(tokens, starts[1:]), strict=True):
            assert row.tolist() == [256, *text.encode(), 256]
        size = sum(len(text.encode()) for text in mine)
        assert store.manifest[split] == {"documents": len(mine), "tokens": len(tokens), "bytes": size}
        assert store.labels_per_byte(split) == pytest.approx((size + len(mine)) / size)
    (source,) = store.manifest["sources"]
    assert (source["name"], source["licence"], source["documents"], source["empty"]) == ("given", "ours", 40, 2)
    assert load_tokenizer(tmp_path / "out").get_vocab() == load_tokenizer(tokenizer).get_vocab()
    assert [d.text for d in held_out(Given(TEXTS), 0.2)] == [t for t in told if is_dev(Document(t, t), 0.2)]


def test_a_killed_store_goes_on_with_its_whole_documents(
    tmp_path: Path, tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document_store, "BATCH_BYTES", 100)
    whole = made(tmp_path / "whole", tokenizer, Given(TEXTS))
    cut = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        make_store(cut, {"given": Given(TEXTS, most=30)}, tokenizer, 0.2, 1)
    with pytest.raises(FileNotFoundError, match="holds no complete documents"):
        DocumentStore(cut)
    before = len(document_store._rows(cut))
    assert 10 < before < 30
    for name in ("train.tokens", "documents.i64"):  # of a document that was being written
        with (cut / name).open("ab") as file:
            file.write(b"\x01\x02\x03")
    encoded: list[str] = []
    encode = Encoder.ids
    monkeypatch.setattr(
        Encoder, "ids", lambda self, texts, *ended: encoded.extend(texts) or encode(self, texts, *ended)
    )
    store = made(cut, tokenizer, Given(TEXTS))
    assert encoded == TEXTS[before:40]
    assert store.manifest == whole.manifest
    for name in ("train.tokens", "dev.tokens", "documents.i64"):
        assert (cut / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    encoded.clear()
    assert made(cut, tokenizer, Given(TEXTS)).manifest == whole.manifest
    assert encoded == []
    other = made(cut, tokenizer, Given(TEXTS[:20]), inputs=2)
    assert other.manifest["sources"][0]["documents"] == 20
    assert encoded == TEXTS[:20]


def test_tokens_are_those_of_any_tokenizer(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path / "bpe")
    store = made(tmp_path / "out", tmp_path / "bpe", Given([f"hello <|im_end|> {i}" for i in range(30)]))
    first = np.split(store.tokens("train"), store.starts("train")[1:])[0].tolist()
    tokenizer = tiny_tokenizer()
    assert (first[0], first[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.eos_token_id not in first[1:-1]  # the name of a special token is text
    assert tokenizer.decode(first[1:-1]).startswith("hello <|im_end|> ")


def test_a_split_without_text_is_refused(tmp_path: Path, tokenizer: Path) -> None:
    for number, texts in enumerate((["", " \n\t"], ["one document alone"])):
        with pytest.raises(ValueError, match=r"No document is in the (train|dev) split; give more documents"):
            made(tmp_path / f"out{number}", tokenizer, Given(texts))
    tokenizer_without_end = tiny_tokenizer()
    tokenizer_without_end.eos_token = None
    with pytest.raises(ValueError, match="no end token"):
        Encoder(tokenizer_without_end)


# -- sources --------------------------------------------------------------------------------------------------------
def test_files_are_documents_and_so_are_lines_of_json(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.txt").write_text("second\nfile", "utf-8")
    (tmp_path / "a.txt").write_text("first", "utf-8")
    (tmp_path / "c.jsonl").write_text('{"body": "one"}\n{"body": "two"}\n', "utf-8")
    source = Files([f"{tmp_path}/**/*.txt", f"{tmp_path}/c.jsonl"], field="body")
    assert [document.text for document in source.documents()] == ["first", "second\nfile", "one", "two"]
    with pytest.raises(FileNotFoundError, match=r"There is no text file .*\.md; name files"):
        Files([f"{tmp_path}/*.md"])
    with pytest.raises(ValueError, match=r"c\.jsonl, line 1 has no text under 'text'"):
        list(Files([f"{tmp_path}/c.jsonl"]).documents())
    before = source.stamp()
    assert Files([f"{tmp_path}/**/*.txt", f"{tmp_path}/c.jsonl"], field="body").stamp() == before
    (tmp_path / "a.txt").write_text("first, and more", "utf-8")
    assert source.stamp() != before
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match="not a text file in UTF-8"):
        list(Files([f"{tmp_path}/bad.txt"]).documents())


def test_self_written_texts_are_those_of_the_corpus_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="run speech-mtp corpus"):
        plugins.build("corpus.documents", "selfwritten")
    (tmp_path / "w.jsonl").write_text('{"index": 0, "prompt": "p", "text": "said"}\n', "utf-8")
    source = plugins.build("corpus.documents", {"name": "selfwritten", "paths": ["w.jsonl"]})
    assert [document.text for document in source.documents()] == ["said"]
    assert "language model" in source.licence


def test_the_standard_library_is_code_and_docstrings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = '"""Of the module."""\n\n\ndef f():\n    """Of f,\n    indented.\n    """\n\n\nclass C:\n    "Of C."\n'
    for name in ("a.py", "test/b.py", "site-packages/c.py", "email/d.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code, "utf-8")
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"stdlib": str(tmp_path)})
    source = Stdlib()
    prose = "Of the module.\n\nOf f,\nindented.\n\nOf C."
    assert docstrings(code) == prose
    assert list(source.documents()) == [Document(name, t) for name in ("a.py", "email/d.py") for t in (code, prose)]
    assert [d.text for d in Stdlib(["docstrings"]).documents()] == [prose] * 2
    assert "PSF License" in source.licence
    assert docstrings("def broken(:") == ""
    with pytest.raises(ValueError, match="no part 'docstring'; did you mean 'docstrings'"):
        Stdlib(["docstring"])


def test_the_real_standard_library_is_there() -> None:
    keys = [document.key for document in islice(Stdlib(["docstrings"]).documents(), 150)]
    assert "ast.py" in keys
    assert len(keys) == len(set(keys)) > 100


def test_a_data_set_is_read_as_a_stream(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="needs the eval extra")
    rows = [{"story": f"once {i}"} for i in range(5)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    spec = {"name": "datasets", "dataset": str(tmp_path), "text": "story", "limit": 3}
    source = plugins.build("corpus.documents", spec)
    assert [document.text for document in source.documents()] == ["once 0", "once 1", "once 2"]
    with pytest.raises(ValueError, match="no column 'stories'; did you mean 'story'"):
        plugins.build("corpus.documents", {**spec, "text": "stories"})
    with pytest.raises(ValueError, match=r"nowhere' cannot be opened: .+"):
        plugins.build("corpus.documents", {"name": "datasets", "dataset": str(tmp_path / "nowhere")})


def test_without_the_library_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"speech-mtp\[eval\]"):
        plugins.build("corpus.documents", {"name": "datasets", "dataset": "x"})


def test_documents_of_one_key_are_in_one_split() -> None:
    """A file's code and its docstrings tell of each other."""
    splits = [{is_dev(Document(f"{number}.py", text), 0.3) for text in ("code", "words")} for number in range(50)]
    assert all(len(found) == 1 for found in splits)
    assert {True} in splits
    assert {False} in splits


def test_answers_are_read_as_text(tmp_path: Path, tokenizer: Path) -> None:
    told = [{"answer_ids": [*b"It is so.", 256]}, {"answer_ids": list(b"It was cut")}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told), "utf-8")
    spec = {"name": "answers", "paths": [str(tmp_path / "a.jsonl")], "model": str(tokenizer)}
    source = plugins.build("corpus.documents", spec)
    assert [(d.text, d.ended) for d in source.documents()] == [("It is so.", True), ("It was cut", False)]
    assert "answers of a language model" in source.licence
    for line in ('{"text": "no answers"}', '{"answer_ids": ["a"]}', '{"answer_ids": [-4]}', '{"answer_ids": [99999]}'):
        (tmp_path / "a.jsonl").write_text(line + "\n", "utf-8")
        with pytest.raises(ValueError, match="line 1 has no token ids of this model under 'answer_ids'"):
            list(plugins.build("corpus.documents", spec).documents())
