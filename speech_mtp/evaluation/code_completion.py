"""What a small language model of code can do: it goes on with functions that it has not seen; Python's parser judges.

The prompt is a function up to a statement of its body, from the middle on. What the model writes is cut into lines, and
a line is valid as long as the text up to its end can be the beginning of a module: brackets match, indentation fits,
every statement can be one. The parser reports the first fault; lines from there on are not valid.
"""

from __future__ import annotations

import ast
import codeop
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

import torch
from torch import Tensor

from speech_mtp.decoding.base import DecodingRule
from speech_mtp.decoding.engine import Statistics, total
from speech_mtp.decoding.text import start
from speech_mtp.evaluation.intervals import estimate
from speech_mtp.lm.document_ids import Encoder
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.types import Sampling

DEFINITIONS = {
    "valid_lines": "of the whole lines that were written, the share before the first fault that Python's parser finds",
    "faultless": "the share of continuations with a whole line and without a fault",
    "next_line": "the share whose first line is that of the function, to the letter",
    "whole": "the share that are the rest of the function, to the letter; longer rests than max_new_tokens cannot be",
    "tokens_per_forward": "tokens gained by one forward of the trunk, the sure one included",
    "acceptance": "per drafted position, the share kept of those whose predecessors were all kept",
    "interval": "holds 95 % of 1,000 bootstrap samples of the functions",
}
BATCH = 20


@dataclass(frozen=True)
class Task:
    """A function up to a statement, and what it goes on with."""

    prompt: str
    rest: str


# -- pure functions -------------------------------------------------------------------------------------------------
def tasks_of(code: str, most_bytes: int = 700) -> Iterator[Task]:
    """The functions of a module that have two statements or more beside their docstring, of ``most_bytes`` at most."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return
    lines = list(StringIO(code))
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
        if len(body) < 2:
            continue
        first, cut, end = node.lineno - 1, body[len(body) // 2].lineno - 1, node.end_lineno or 0
        text = textwrap.dedent("".join(lines[first:end]))
        if body[len(body) // 2 - 1].end_lineno == cut + 1 or len(text.encode()) > most_bytes:
            continue  # two statements on a line; too long
        parts = list(StringIO(text))
        if len(parts) == end - first and first_fault("".join(parts[: cut - first]), []) is None:
            yield Task("".join(parts[: cut - first]), "".join(parts[cut - first :]).rstrip() + "\n")


def first_fault(prompt: str, lines: Sequence[str]) -> int | None:
    """The first of ``lines`` with whose end ``prompt`` and all up to it cannot be the beginning of a module, counted
    from 0; None if there is no such line. Without lines: 0 if the prompt itself cannot."""
    ends = [prompt, *("".join([prompt, *lines[: n + 1]]) for n in range(len(lines)))]
    if _can_begin(ends[-1]):
        return None
    if not lines:
        return 0
    return next(n for n, text in enumerate(ends[1:]) if not _can_begin(text))


def _can_begin(text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            codeop.compile_command(text, "<text>", "exec")
        except (SyntaxError, ValueError, OverflowError, MemoryError, RecursionError):
            return False
    return True


def whole_lines(text: str, ended: bool) -> list[str]:
    """The lines of a text that is cut off after its last token, or ``ended`` by itself: then the last one counts."""
    lines = list(StringIO(text))
    return lines if ended or not lines or lines[-1].endswith("\n") else lines[:-1]


# -- the report -----------------------------------------------------------------------------------------------------
def completion_report(
    lm: TextLM,
    tasks: Iterable[Task],
    rule: DecodingRule | None = None,
    sampling: Sampling | None = None,
    max_new_tokens: int = 128,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """How ``lm`` goes on with ``tasks``, drafting by ``rule`` if there is one: which changes no word of it.

    Raises ValueError where there is no task.
    """
    found, rows, counts = list(tasks), [], []
    if not found:
        raise ValueError("There is no function to go on with; give Python sources, or hold more of them out.")
    sampling, encoder = sampling or Sampling(temperature=0), Encoder(lm.tokenizer)
    for begin in range(0, len(found), BATCH):
        some = found[begin : begin + BATCH]
        report(f"functions {begin + 1} to {begin + len(some)} of {len(found)}")
        prompts = [encoder.beginning(task.prompt) for task in some]
        seeds = torch.arange(begin, begin + len(some)) + sampling.seed
        run = start(lm, prompts, sampling, rule, max_new_tokens, seeds=seeds)
        written = run.complete()
        counts += run.counts
        rows += [judged(lm, task, *pair) for task, *pair in zip(some, prompts, written, strict=True)]
    sums = torch.tensor(rows, dtype=torch.float64)
    statistics: Statistics = total(counts)
    columns = {"valid_lines": [0, 1], "faultless": [2, 5], "next_line": [3, 5], "whole": [4, 5]}
    return {
        **{name: estimate(sums[:, pair], _share) for name, pair in columns.items()},
        "tokens_per_forward": statistics.tokens_per_forward,
        "acceptance": statistics.acceptance,
        "functions": len(rows),
        "lines": int(sums[:, 1].sum()),
        "max_new_tokens": max_new_tokens,
        "temperature": sampling.temperature,
        "definitions": DEFINITIONS,
    }


def _share(totals: Tensor) -> Tensor:
    """Of (count, of how many); 0 of none."""
    return totals[..., 0] / totals[..., 1].clamp(min=1)


def judged(lm: TextLM, task: Task, prompt: list[int], tokens: list[int]) -> tuple[float, ...]:
    """Valid lines, lines, no fault, next line right, all right, 1."""
    ended = bool(tokens) and tokens[-1] in lm.ends
    # With its prompt: some tokenizers decode the first token otherwise than the same in the middle.
    plain = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    text = lm.tokenizer.decode(prompt + tokens, **plain)[len(lm.tokenizer.decode(prompt, **plain)) :]
    lines = whole_lines(text, ended)
    fault = first_fault(task.prompt, lines) if lines else None
    true = list(StringIO(task.rest))
    next_line = bool(lines) and lines[0].rstrip() == true[0].rstrip()
    whole = text.rstrip() == task.rest.rstrip() if ended else text.startswith(task.rest)
    valid = len(lines) if fault is None else fault
    return float(valid), float(len(lines)), float(bool(lines) and fault is None), float(next_line), float(whole), 1.0
