"""Registers and prophet, which insert positions: the exact masks, labels and places, and a text left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from speech_mtp import plugins
from speech_mtp.layouts.base import IGNORE
from speech_mtp.lm.causal_lm import CausalLM
from speech_mtp.nn.kv_cache import attention
from speech_mtp.nn.visibility import dense, mask_of, within_segments
from speech_mtp.objectives.base import Course, Inputs, Objective
from speech_mtp.objectives.ntp import NTP
from speech_mtp.objectives.prophet import Prophet
from speech_mtp.objectives.registers import Registers, drawn_offsets, labels_ahead
from speech_mtp.types import Kind, LMOutput
from tests.objectives.rows import packed, random_rows

CPU = torch.device("cpu")
I = IGNORE  # noqa: E741
VOCAB = 29
CASES = [({"name": "registers", "d_max": 3}, 1), ({"name": "prophet", "n": 2}, 1), ({"name": "prophet", "n": 4}, 3)]


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    torch.manual_seed(0)
    lm = CausalLM.tiny(VOCAB)
    with torch.no_grad():
        for weight in lm.parameters():
            weight.normal_(0, 0.2)  # at first attention hardly matters
    return lm


def bound(lm: CausalLM, spec: dict[str, Any], length: int = 64) -> Any:
    torch.manual_seed(2)
    objective: Objective = plugins.build("objectives", spec)
    objective.bind(lm, Course(length, 100))
    objective.vectors.data.normal_()  # type: ignore[attr-defined]
    return objective


def states(lm: CausalLM, inputs: Inputs) -> LMOutput:
    p = inputs.positions
    x = lm.embed(p.tokens[..., 0]) if inputs.vectors is None else inputs.vectors
    out: LMOutput = lm(x, p.index, mask_of(inputs.sees or within_segments(p.segment), *p.segment.shape, CPU))
    return out


def picture(inputs: Inputs) -> list[str]:
    assert inputs.sees is not None
    seen = dense(inputs.sees, *inputs.positions.segment.shape, CPU)[0, 0]
    return ["".join("x" if there else "." for there in row) for row in seen.tolist()]


# -- what sees what -------------------------------------------------------------------------------------------------
def test_registers_see_the_text_up_to_their_token_and_nobody_sees_them(lm: CausalLM) -> None:
    inputs = bound(lm, {"name": "registers"}).prepare(lm, packed([[5, 6, 7], [8]]))
    # places: 5 r 6 r 7 r 8 r
    assert picture(inputs) == [
        "x.......",
        "xx......",
        "x.x.....",
        "x.xx....",
        "x.x.x...",
        "x.x.xx..",
        "......x.",
        "......xx",
    ]
    assert inputs.positions.kind[0].tolist() == [Kind.TEXT, Kind.REGISTER] * 4


def test_a_stream_sees_the_text_as_far_as_it_may(lm: CausalLM) -> None:
    inputs = bound(lm, {"name": "prophet", "n": 3}).prepare(lm, packed([[5, 6, 7], [8]]))
    # places: 5 s1 s2 6 s1 s2 7 s1 s2 8 s1 s2
    assert picture(inputs) == [
        "x...........",
        ".x..........",
        "..x.........",
        "x..x........",
        "x...x.......",
        ".....x......",
        "x..x..x.....",
        "x..x...x....",
        "x.......x...",
        ".........x..",
        "..........x.",
        "...........x",
    ]
    assert inputs.positions.labels is not None
    assert inputs.positions.labels[0, :, 0].tolist() == [6] * 3 + [7] * 3 + [I] * 6
    assert inputs.positions.index[0].tolist() == [0] * 3 + [1] * 3 + [2] * 3 + [0] * 3


@pytest.mark.parametrize(("spec", "extra"), CASES)
def test_the_text_has_the_states_that_it_has_without(lm: CausalLM, spec: dict[str, Any], extra: int) -> None:
    positions = random_rows(3, 40, VOCAB)
    plain = states(lm, Inputs(positions)).top
    inputs = bound(lm, spec).prepare(lm, positions)
    torch.testing.assert_close(states(lm, inputs).top[:, :: 1 + extra], plain, atol=1e-5, rtol=1e-4)
    assert inputs.positions.segment.shape == (3, 40 * (1 + extra))
    assert inputs.positions.kind.eq(Kind.TEXT).sum() == positions.kind.eq(Kind.TEXT).sum()


@pytest.mark.parametrize(("spec", "extra"), CASES)
def test_the_rule_is_the_same_as_a_block_mask(lm: CausalLM, spec: dict[str, Any], extra: int) -> None:
    """What a GPU is given."""
    inputs = bound(lm, spec).prepare(lm, random_rows(2, 60, VOCAB))
    assert inputs.sees is not None
    rows, length = inputs.positions.segment.shape
    blocks = create_block_mask(inputs.sees, rows, None, length, length, "cpu")
    queries, keys, values = torch.randn(3, rows, 2, length, 16).unbind()
    expected = F.scaled_dot_product_attention(queries, keys, values, dense(inputs.sees, rows, length, CPU))
    torch.testing.assert_close(attention(queries, keys, values, blocks), expected, atol=1e-5, rtol=1e-4)
    assert length == 60 * (1 + extra)


def test_padding_stays_padding(lm: CausalLM) -> None:
    inputs = bound(lm, {"name": "registers"}).prepare(lm, packed([[5, 6, 7]], [[8]]))
    assert inputs.positions.kind[1].tolist() == [Kind.TEXT, Kind.REGISTER] + [Kind.PAD] * 4
    assert bool(states(lm, inputs).top.isfinite().all())


# -- registers ------------------------------------------------------------------------------------------------------
def test_labels_and_places_of_registers_by_hand(monkeypatch: pytest.MonkeyPatch, lm: CausalLM) -> None:
    positions = packed([[1, 2, 3, 4], [5, 6, 7]])
    offsets = torch.tensor([[3, 3, 3, 3, 2, 2, 2]])
    monkeypatch.setattr("speech_mtp.objectives.registers.drawn_offsets", lambda segment, most: offsets)
    inputs = bound(lm, {"name": "registers"}).prepare(lm, positions)
    assert inputs.positions.labels is not None
    assert inputs.positions.labels[0, 1::2, 0].tolist() == [4, I, I, I, 7, I, I]
    assert inputs.positions.labels[0, ::2, 0].tolist() == [2, 3, 4, I, 6, 7, I]
    assert inputs.positions.index[0, 1::2].tolist() == [2, 1, 2, 3, 1, 1, 2]
    assert inputs.positions.index[0, ::2].tolist() == [0, 1, 2, 3, 0, 1, 2]


def test_offsets_are_drawn_evenly_for_every_document() -> None:
    torch.manual_seed(0)
    segment = torch.arange(1000)[None].expand(20, -1) // 2
    drawn = drawn_offsets(segment, 4)
    assert torch.equal(drawn[:, ::2], drawn[:, 1::2])
    shares = drawn.flatten().bincount(minlength=5)[1:] / drawn.numel()
    assert shares.tolist() == pytest.approx([0.25] * 4, abs=0.02)
    assert drawn_offsets(segment, 1).eq(1).all()


def alone(lm: CausalLM, tokens: list[int], vector: Tensor, place: int) -> Tensor:
    """The logits after a document of its own that ends with ``vector`` at the rotary position ``place``."""
    x = torch.cat([lm.embed(torch.tensor([tokens], dtype=torch.long)), vector[None, None]], 1)
    index = torch.tensor([[*range(len(tokens)), place]])
    mask = torch.ones(1, 1, x.shape[1], x.shape[1], dtype=torch.bool).tril()
    return lm.output.logits(lm(x, index, mask).top[0, -1])


def test_the_loss_of_registers_is_that_of_texts_that_end_with_one(lm: CausalLM) -> None:
    documents = [[[3, 1, 4, 1, 5], [9, 2]], [[6, 5, 3, 5, 8, 9, 7]]]
    objective, positions = bound(lm, {"name": "registers", "d_max": 3}), packed(*documents)
    torch.manual_seed(5)
    offsets = drawn_offsets(positions.segment, 3)
    torch.manual_seed(5)
    inputs = objective.prepare(lm, positions)
    terms = dict(objective.terms(lm, states(lm, inputs), inputs.positions))
    losses = []
    for b, t in (labels_ahead(positions, offsets, 3) != I).nonzero().tolist():
        document = documents[b][int(positions.segment[b, t]) - 1]
        at, ahead = int(positions.index[b, t]), int(offsets[b, t])
        scores = alone(lm, document[: at + 1], objective.vectors[0], at + ahead - 1)
        losses.append(F.cross_entropy(scores, torch.tensor(document[at + ahead])))
    assert len(losses) > 5
    torch.testing.assert_close(terms["registers"], torch.stack(losses).mean())
    assert (objective.weight("next"), objective.weight("registers")) == pytest.approx((0.7, 0.3))


def test_the_curriculum_is_how_far_registers_look(lm: CausalLM) -> None:
    objective = bound(lm, {"name": "registers", "d_max": 4, "curriculum": "forward"})
    positions = packed([list(range(10))])
    farthest = []
    for number in (0, 25, 50, 75):
        objective.at_step(number)
        drawn = [objective.prepare(lm, positions).positions.index[0, 1] + 1 for _ in range(60)]
        farthest.append(int(max(drawn)))
    assert farthest == [1, 2, 3, 4]


# -- prophet --------------------------------------------------------------------------------------------------------
def test_the_loss_of_a_stream_is_that_of_texts_that_end_early(lm: CausalLM) -> None:
    documents = [[[3, 1, 4, 1], [9, 2]], [[6, 5, 3, 5, 8]]]
    objective, positions = bound(lm, {"name": "prophet", "n": 3}), packed(*documents)
    inputs = objective.prepare(lm, positions)
    terms = dict(objective.terms(lm, states(lm, inputs), inputs.positions))
    assert list(terms) == ["next", "ahead2", "ahead3"]
    for s in (1, 2):
        losses = [
            F.cross_entropy(
                alone(lm, document[: max(0, t - s + 1)], objective.vectors[s - 1], t), torch.tensor(document[t + 1])
            )
            for row in documents
            for document in row
            for t in range(len(document) - 1)
        ]
        torch.testing.assert_close(terms[f"ahead{s + 1}"], torch.stack(losses).mean())
    assert objective.weight("next") == objective.weight("ahead3") == 1 / 3


def test_every_stream_learns(lm: CausalLM) -> None:
    objective, positions = bound(lm, {"name": "prophet", "n": 3}), random_rows(2, 30, VOCAB)
    inputs = objective.prepare(lm, positions)
    for _, term in objective.terms(lm, states(lm, inputs), inputs.positions):
        term.backward(retain_graph=True)
    assert bool((objective.vectors.grad.abs().sum(-1) > 0).all())


# -- settings -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"name": "registers", "d_max": 0}, "registers has d_max 0"),
        ({"name": "registers", "share": 1.0}, "share 1.0"),
        ({"name": "registers", "d_max": 65}, "k is 65, but the rows have 64 tokens"),
        ({"name": "registers", "curriculum": [{"k": 1, "weights": [1]}]}, "drawn, not weighted"),
        ({"name": "prophet", "n": 1}, "which is 'ntp'"),
        ({"name": "prophet", "n": 65}, "n is 65, but the rows have 64 tokens"),
    ],
)
def test_settings_that_do_not_fit_are_refused(lm: CausalLM, spec: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        bound(lm, spec)


def test_defaults_are_the_papers() -> None:
    registers, prophet = Registers(), Prophet()
    assert (registers.curriculum.k_max, registers.share, prophet.n) == (4, 0.3, 2)


def test_a_row_without_labels_costs_nothing() -> None:
    lm, positions = CausalLM.tiny(), packed([[1, 2, 3], [4, 5]])
    assert positions.labels is not None
    positions.labels.fill_(IGNORE)
    out = LMOutput(torch.randn(*positions.segment.shape, 1, lm.dim, requires_grad=True))
    ((_, loss),) = NTP().terms(lm, out, positions)
    assert loss.item() == 0
    loss.backward()
    assert torch.equal(out.hidden.grad, torch.zeros_like(out.hidden))  # type: ignore[arg-type]
