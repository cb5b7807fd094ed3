"""What text models are asked in a measurement: a file of questions, of one turn or several."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Question:
    """A conversation to be had: the ``turns`` of the user, in order."""

    name: str
    turns: tuple[str, ...]


def read_questions(path: Path, limit: int | None = None) -> list[Question]:
    """The first ``limit`` questions: ``.txt`` has one a line, ``.jsonl`` an object with ``turns`` or ``prompt``.

    Raises FileNotFoundError, and ValueError with the number of a line that holds no question.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of questions {path}.")
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"{path} is neither .jsonl nor .txt; write questions in one of these.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8.") from error
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()][:limit]
    if not numbered:
        raise ValueError(f"{path} holds no questions.")
    if path.suffix == ".txt":
        return [Question(str(number), (line.strip(),)) for number, line in numbered]
    return [_question(f"{path}, line {number}", line, str(number)) for number, line in numbered]


def digest(questions: Sequence[Question]) -> str:
    """A short name of the questions' texts."""
    return hashlib.sha256(json.dumps([q.turns for q in questions]).encode()).hexdigest()[:16]


def _question(where: str, line: str, name: str) -> Question:
    try:
        entry: Any = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON.") from error
    if not isinstance(entry, dict):
        raise ValueError(f"{where} is not an object with 'turns' or 'prompt'.")
    turns = entry.get("turns", [entry.get("prompt")])
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) and t.strip() for t in turns):
        raise ValueError(f"{where} has neither a text under 'prompt' nor a list of texts under 'turns'.")
    return Question(str(entry.get("question_id", name)), tuple(turns))
