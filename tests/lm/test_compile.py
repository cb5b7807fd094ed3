"""Compiled or not, the same text; and nothing breaks where there is no compiler."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GemmaConfig, GemmaForCausalLM
from typer.testing import CliRunner

from speech_mtp.cli import app
from speech_mtp.decoding.lookup import Lookup
from speech_mtp.decoding.text import start
from speech_mtp.lm.decoder import Decoder
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.types import Sampling
from tests.lm.test_decoder import SIZES, model, states
from tests.text_tiny import tiny_folder

PROMPTS = [[5, 9, 2], [7, 7, 30, 1, 12, 4, 22]]


def said(lm: TextLM, prompts: list[list[int]]) -> list[list[int]]:
    return start(lm, prompts, Sampling(temperature=0), Lookup(4), 30).complete()


def test_without_a_compiler_decoding_goes_on_and_one_warning_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: Callable[..., Any], **settings: Any) -> Callable[..., Any]:
        def call(*given: Tensor) -> None:
            raise RuntimeError("Compiler: g++ is not found.\nmore of this")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(RuntimeWarning, match="goes on without: Compiler: g\\+\\+ is not found.$") as caught:
        lm = model("llama").prepare(compile=True)
    assert len(caught) == 1
    for a, b in zip(states(lm, (0, -1)), states(model("llama").prepare(), (0, -1)), strict=True):
        assert torch.equal(a, b)


def test_families_that_decode_by_their_own_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="'gemma' models cannot be compiled"):
        TextLM(GemmaForCausalLM(GemmaConfig(**SIZES))).prepare(compile=True)


def test_the_commands_compile_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(Decoder, "compile", lambda self: calls.append("compiled"))
    folder = str(tiny_folder(tmp_path / "lm"))
    for more in ([], ["--compile"]):
        generate = ["generate", "hello", "--raw", "--backbone", folder, "--max-new-tokens", "2", *more]
        assert CliRunner().invoke(app, generate).exit_code == 0
        assert len(calls) == len(more)


def compiled(name: str, dtype: torch.dtype) -> tuple[TextLM, TextLM]:
    plain, fast = (TextLM(model(name).model.to(dtype)).prepare() for _ in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)  # ours: not compiled
        fast.prepare(compile=True)
    assert fast._decoder is not None
    assert plain._decoder is not None
    assert fast._decoder._maths != plain._decoder._maths
    return fast, plain


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_compiled_it_says_the_same(name: str) -> None:
    fast, plain = compiled(name, torch.float32)
    for prompts in (PROMPTS, PROMPTS[:1]):
        assert said(fast, prompts) == said(plain, prompts)
    for a, b in zip(states(fast, (0, 2, -1)), states(plain, (0, 2, -1)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_compiled_bfloat16_stays_near() -> None:
    fast, plain = compiled("llama", torch.bfloat16)
    for a, b in zip(states(fast, (-1,)), states(plain, (-1,)), strict=True):
        assert a.dtype == torch.bfloat16
        assert float((a.float() - b.float()).norm() / b.float().norm()) < 0.05
