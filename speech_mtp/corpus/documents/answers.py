"""Answers that a language model gave (:mod:`speech_mtp.corpus.answers`), as text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from speech_mtp import hub
from speech_mtp.corpus.documents.base import Document, DocumentSource
from speech_mtp.corpus.documents.files import Files
from speech_mtp.corpus.manifest import read_lines
from speech_mtp.lm.backbone import load_tokenizer

LICENCE = "answers of a language model; its licence applies"


class Answers(DocumentSource):
    """``paths`` are files of answers, or patterns; ``model`` (a folder or hub id; None: the packaged one) gave them.
    Raises FileNotFoundError for a path that matches no file."""

    def __init__(self, paths: list[str], model: str | None = None, licence: str = LICENCE) -> None:
        self._files, self._model = Files(paths, licence=licence), model
        self._tokenizer, self.licence = load_tokenizer(hub.find_backbone(model)), licence

    def stamp(self) -> Any:
        return [self._model, self._files.stamp()]

    def documents(self) -> Iterator[Document]:
        size = len(self._tokenizer)
        for path in self._files.paths:
            for number, line in enumerate(read_lines(path), start=1):
                ids = line.get("answer_ids")
                if not isinstance(ids, list) or not all(isinstance(i, int) and 0 <= i < size for i in ids):
                    raise ValueError(
                        f"{path}, line {number} has no token ids of this model under 'answer_ids'; name the model that "
                        "gave the answers, or another file."
                    )
                text = str(self._tokenizer.decode(ids, skip_special_tokens=True))
                ended = bool(ids) and ids[-1] == self._tokenizer.eos_token_id
                yield Document(text, text, ended)
