"""On a GPU a step of decoding never waits for the device, but for one copy to the host at its end.

Shown without one: fake tensors have a device and shapes but no numbers, so whoever looks at a number fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from speech_mtp.decoding import engine
from speech_mtp.decoding.engine import Statistics, step
from speech_mtp.decoding.laws import TextLaw
from speech_mtp.decoding.text import Answer, TextRun
from speech_mtp.heads.base import PrivateUnembedding
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.types import RowSampling, Sampling, Status
from tests.decoding.test_text_lossless import make_head, make_rule, pairs, tiny_lm

LOOKS = {"cascade"}
"""Looks once before it drafts, to leave the head out where lookups serve every row. The host needs the answer to know
what to launch, and the device has just been waited for at the end of the step before, so the look is short."""

ROWS = 2
GREEDY = Sampling(temperature=0, repetition_penalty=1.2)
DRAWN = Sampling(temperature=0.8, top_k=5, top_p=0.9)


class NoTransfers(TorchDispatchMode):
    """Fails where a tensor goes from one device to another."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        places = {x.device for x in (*args, out) if isinstance(x, Tensor)}
        assert len(places) < 2 or "copy" not in str(function), f"{function} copies between {places}"
        return out


@pytest.fixture(scope="module")
def model() -> tuple[FakeTensorMode, TextLM]:
    """A model on a GPU that is not there, and the mode in which it is."""
    with FakeTensorMode() as mode, torch.device("cuda"):
        return mode, tiny_lm().prepare(graphs=False)


@pytest.fixture
def gpu(model: tuple[FakeTensorMode, TextLM], monkeypatch: pytest.MonkeyPatch) -> Iterator[TextLM]:
    monkeypatch.setattr(PrivateUnembedding, "start", lambda self, rows: None)  # when a head is bound, not in a step
    with model[0]:
        yield model[1]


def run_of(lm: TextLM, head: str | None, rule: str, sampling: Sampling, **settings: Any) -> TextRun:
    """A run in the middle of its answers."""
    with torch.device("cuda"):
        built = None if head is None else make_head(head, lm).prepare()
    rows = lm.open(ROWS, 64)
    rows.cache.know(10)
    rows.sampling = RowSampling([sampling] * ROWS, lm.device)
    law, drafting = TextLaw(lm), make_rule(rule, built, **settings)
    drafting.begin(rows, law)
    answers: list[Answer | None] = [Answer(20, tokens=[token]) for token in (1, 2)]
    going, counts = [Status.GOING] * ROWS, [Statistics() for _ in range(ROWS)]
    return TextRun(lm, law, rows, drafting, finish=[None] * ROWS, status=going, counts=counts, answers=answers)


def two_steps(run: TextRun) -> Tensor:
    active = torch.ones(ROWS, dtype=torch.bool, device=run.lm.device)
    for _ in range(2):
        draft, *_ = step(run.lm, run.rule, run.rows, run.law, active)
    return draft.tokens


@pytest.mark.parametrize("sampling", [GREEDY, DRAWN], ids=["greedy", "drawn"])
@pytest.mark.parametrize(("head", "rule"), [pair for pair in pairs() if pair[1] not in LOOKS])
def test_a_step_is_made_without_looking(gpu: TextLM, head: str | None, rule: str, sampling: Sampling) -> None:
    run = run_of(gpu, head, rule, sampling)
    with NoTransfers():
        tokens = two_steps(run)
    assert tokens.device.type == "cuda"
    assert (tokens.shape[1] > 1) == (rule != "vanilla")


def test_a_chain_that_draws_its_drafts_does_not_look_either(gpu: TextLM) -> None:
    run = run_of(gpu, "eagle", "chain", DRAWN, rejection=True)
    with NoTransfers():
        assert two_steps(run).device.type == "cuda"


def test_rows_of_several_settings_are_decoded_without_looking(gpu: TextLM) -> None:
    run = run_of(gpu, "eagle", "tree", GREEDY)
    run.rows.sampling = RowSampling([GREEDY, DRAWN], gpu.device)
    with NoTransfers():
        assert two_steps(run).device.type == "cuda"


def test_a_static_tree_sends_its_indices_once(gpu: TextLM, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(gpu, "eagle", "tree", GREEDY, shape="static", accuracies=[[0.5, 0.3], [0.4, 0.2]])
    with torch.device("cuda"), monkeypatch.context() as patched:
        tensor = torch.tensor
        patched.setattr(torch, "tensor", lambda x, device, **more: tensor([0] * len(x), device="cpu").to(device))
        run.rule._on(run.lm.device)
    with NoTransfers():
        two_steps(run)


def test_only_a_confident_chain_looks_at_every_level(gpu: TextLM) -> None:
    with pytest.raises(DataDependentOutputException):
        two_steps(run_of(gpu, "eagle", "chain", GREEDY, confidence=0.5))


def test_a_confident_tree_does_not(gpu: TextLM) -> None:
    run = run_of(gpu, "eagle", "tree", GREEDY, confidence=0.5)
    with NoTransfers():
        assert two_steps(run).device.type == "cuda"


ALL, SOME, NONE = [True, True], [False, True], [False, False]
"""Whether lookups serve all rows, and whether any."""
HEADS = [head for head, rule in pairs() if rule in LOOKS]
CASES = [*((head, SOME, GREEDY) for head in HEADS), *(("eagle", rows, DRAWN) for rows in (ALL, SOME, NONE))]


@pytest.mark.parametrize(("head", "looked_up", "sampling"), CASES)
def test_a_cascade_looks_once_a_step(
    gpu: TextLM, head: str, looked_up: list[bool], sampling: Sampling, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[torch.Size] = []

    def tolist(x: Tensor) -> list[bool]:
        looks.append(x.shape)
        return looked_up

    run = run_of(gpu, head, "cascade", sampling)
    monkeypatch.setattr(FakeTensor, "tolist", tolist)
    with NoTransfers():
        tokens = two_steps(run)
    assert looks == [(2,)] * 2
    assert tokens.device.type == "cuda"
    assert tokens.shape[1] > 1


def test_an_advance_copies_once(gpu: TextLM, monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[torch.Size] = []

    def tolist(x: Tensor) -> list[list[int]]:
        copies.append(x.shape)
        return [[2, 1, 1, int(Status.GOING), 12, *range(7, 2 + x.shape[1])]] * len(x)

    def sent(numbers: list[int], device: torch.device) -> Tensor:
        return torch.ones(len(numbers), dtype=torch.long, device=device)

    run = run_of(gpu, "eagle", "chain", GREEDY)
    monkeypatch.setattr(engine, "sent", sent)
    monkeypatch.setattr(FakeTensor, "tolist", tolist)
    with NoTransfers():
        assert run.advance() == [[7, 8]] * ROWS
    assert copies == [(ROWS, 5 + 6)]
    assert run.rows.cache.longest == 12  # known without another copy
    assert run.statistics.emitted == 2 * ROWS
