"""The texts that the corpus recipe let a language model write."""

from __future__ import annotations

from pathlib import Path

from speech_mtp.corpus.documents.files import Files

LICENCE = "written by a language model (the corpus recipe); its licence applies"


class SelfWritten(Files):
    """``paths`` are files of :mod:`speech_mtp.corpus.selfwrite`; each text is a document."""

    def __init__(self, paths: list[str] | None = None, licence: str = LICENCE) -> None:
        super().__init__(paths or ["runs/corpus/selfwritten.jsonl"], "text", licence)

    def _matching(self, pattern: str) -> list[Path]:
        try:
            return super()._matching(pattern)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"There are no self-written texts {pattern}; run speech-mtp corpus recipes/corpus/config.yaml first, "
                "or name another file."
            ) from error
