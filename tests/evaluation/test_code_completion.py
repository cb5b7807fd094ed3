"""Functions to go on with, Python's parser as the judge, and figures that are counted by hand."""

from __future__ import annotations

import inspect
import json
import textwrap
from pathlib import Path

import pytest
import torch

from speech_mtp.decoding import catalogue
from speech_mtp.evaluation import code_completion
from speech_mtp.evaluation.code_completion import (
    Task,
    completion_report,
    first_fault,
    judged,
    tasks_of,
    whole_lines,
)
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.types import Sampling
from tests.cli.running import run
from tests.text_tiny import tiny_folder, tiny_head, tiny_text_lm

CODE = '''
import os


class Shelf:
    """Books."""

    def add(self, book, times=1):
        """Put it there."""
        if times < 1:
            raise ValueError(times)
        for _ in range(times):
            self.books.append(book)
        return len(self.books)

    def one(self): return 1

    def short(self):
        return [b for b in self.books]

    def two(self):
        a = 1; b = 2
        return a + b


def long():
    x = "%s"
    return x
'''


def test_functions_are_cut_before_a_statement_in_the_middle_of_their_body() -> None:
    tasks = list(tasks_of(CODE % ("x" * 800)))
    assert [task.prompt.split("(")[0] for task in tasks] == ["def add"]
    prompt = '''\
        def add(self, book, times=1):
            """Put it there."""
            if times < 1:
                raise ValueError(times)
        '''
    rest = """\
            for _ in range(times):
                self.books.append(book)
            return len(self.books)
        """
    assert tasks[0] == Task(textwrap.dedent(prompt), textwrap.indent(textwrap.dedent(rest), "    "))
    assert [task.prompt.split("(")[0] for task in tasks_of(CODE % "x")] == ["def long", "def add"]
    assert list(tasks_of("def f(:\n")) == []


def test_what_people_wrote_has_no_fault() -> None:
    tasks = list(tasks_of(inspect.getsource(textwrap)))
    assert len(tasks) > 5
    for task in tasks:
        assert first_fault(task.prompt, whole_lines(task.rest, True)) is None


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (["    for x in y:\n", "        print(x\n"], None),  # all can still be closed
        (["    z = (1,\n", "         2]\n", "    w = 1\n"], 1),
        (["    z = 1\n", "      w = 2\n"], 1),
        (["    if x:\n", "    y = 1\n"], 1),
        (["  z = 1\n"], 0),
        (["    return x\n", "\n", "return 1\n"], 2),
        (['    """a text that is\n', "not ended (]\n"], None),
        (["    x = 1 +\n"], 0),
        (["    x = \0\n"], 0),
        (["    x = " + "(" * 300 + "\n"], 0),
    ],
)
def test_the_first_fault_is_found(lines: list[str], fault: int | None) -> None:
    assert first_fault("def f(x):\n    y = 2\n", lines) == fault


def test_a_line_that_was_cut_off_is_not_judged() -> None:
    assert whole_lines("a\nb", ended=False) == ["a\n"]
    assert whole_lines("a\nb", ended=True) == ["a\n", "b"]
    assert whole_lines("", ended=False) == []


class Saying:
    """A tokenizer of letters; 0 begins and ends. A text loses its first space, as in SentencePiece."""

    bos_token_id = eos_token_id = 0

    def decode(self, ids: list[int], skip_special_tokens: bool, clean_up_tokenization_spaces: bool) -> str:
        assert skip_special_tokens
        assert not clean_up_tokenization_spaces
        text = "".join(chr(i) for i in ids if i)
        return text.removeprefix(" ")


def test_figures_are_counted() -> None:
    tasks = [
        Task("def f(x):\n    a = 1\n", rest) for rest in ("    return a\n", "    b = 2\n    return b\n", "    c\n", "")
    ]
    written = [
        ([*map(ord, "    return a\n"), 0], (1, 1, 1, 1, 1)),  # all right
        ([*map(ord, "    b = 2\n    b]\n    e = ")], (1, 2, 0, 1, 0)),  # cut off; a fault in the second line
        ([*map(ord, "   c\n"), 0], (0, 1, 0, 0, 0)),
        ([*map(ord, "    no line")], (0, 0, 0, 0, 0)),
    ]

    class Fixed:
        tokenizer, ends = Saying(), {0}

    tasks[3] = Task(tasks[3].prompt, "    no line is this\n")
    found = [
        judged(Fixed(), task, [0, *map(ord, task.prompt)], said)  # type: ignore[arg-type]
        for task, (said, _) in zip(tasks, written, strict=True)
    ]
    assert found == [(*figures, 1.0) for _, figures in written]


@pytest.fixture(scope="module")
def lm() -> TextLM:
    return tiny_text_lm()


def test_drafts_change_no_word_and_are_counted(lm: TextLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(code_completion, "BATCH", 2)
    said: list[list[int]] = []

    def heard(lm: TextLM, task: Task, prompt: list[int], tokens: list[int]) -> tuple[float, ...]:
        said.append(tokens)
        return judged(lm, task, prompt, tokens)

    monkeypatch.setattr(code_completion, "judged", heard)
    tasks = [*tasks_of(CODE % "x"), Task("def g():\n    a = 1\n", "    return a\n")]
    head = tiny_head(lm)
    for sampling in (Sampling(temperature=0), Sampling(temperature=1.0, seed=3)):
        said.clear()
        plain = completion_report(lm, tasks, None, sampling, max_new_tokens=12)
        drafted = completion_report(lm, tasks, catalogue.build("chain", head), sampling, max_new_tokens=12)
        assert plain["functions"] == 3
        assert plain["tokens_per_forward"] == 1
        assert drafted["tokens_per_forward"] >= 1
        assert len(drafted["acceptance"]) == 2
        assert len(said) == 6
        assert said[:3] == said[3:]
        drawn = said[:3]
        assert max(map(len, said)) == 12
        same = ("valid_lines", "faultless", "next_line", "whole", "lines")
        assert {key: plain[key] for key in same} == {key: drafted[key] for key in same}
    said.clear()
    monkeypatch.setattr(code_completion, "BATCH", 20)
    together = completion_report(lm, tasks, None, Sampling(temperature=1.0, seed=3), max_new_tokens=12)
    assert said == drawn
    assert together["functions"] == 3
    with pytest.raises(ValueError, match="no function to go on with"):
        completion_report(lm, [])
    assert torch.is_grad_enabled()


def test_the_command_draws_the_same_functions_and_drafts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_folder(tmp_path / "model")
    head = tmp_path / "head"
    tiny_head(TextLM.from_folder(tmp_path / "model"), head)
    for number in range(20):
        (tmp_path / f"{number}.py").write_text(CODE % f"{number}", "utf-8")
    sources = f"{{name: files, paths: ['{tmp_path}/*.py']}}"
    command = ["eval", "completion", str(tmp_path / "model"), "--sources", sources, "--dev-fraction", "0.5"]
    command += ["--functions", "4", "--max-new-tokens", "8"]
    seen: list[list[Task]] = []
    report = code_completion.completion_report
    monkeypatch.setattr(
        code_completion, "completion_report", lambda lm, tasks, *more: (seen.append(tasks), report(lm, tasks, *more))[1]
    )
    assert run(monkeypatch, *command, "--json", str(tmp_path / "plain.json")) == 0
    drafting = ["--head", str(head), "--rule", "{name: chain}", "--temperature", "0.8"]
    assert run(monkeypatch, *command, *drafting, "--json", str(tmp_path / "drafted.json")) == 0
    assert seen[0] == seen[1]
    plain, drafted = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("plain", "drafted"))
    assert (plain["functions"], plain["max_new_tokens"], plain["rule"]) == (4, 8, "vanilla")
    assert (drafted["rule"], drafted["temperature"], len(drafted["acceptance"])) == ("chain", 0.8, 2)
    assert "valid_lines" in capsys.readouterr().out
    assert run(monkeypatch, *command, "--json", str(tmp_path / "x.json"), "--functions", "9999") == 2
    assert "and 9999 were asked for" in capsys.readouterr().err
