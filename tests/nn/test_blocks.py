"""Weights in blocks of few bits: compiled kernels and torch give the very same numbers, whatever comes with them."""

from __future__ import annotations

import copy
import ctypes
import platform
from pathlib import Path

import pytest
import torch
from torch import Tensor

from speech_mtp import native
from speech_mtp.nn import blocks
from speech_mtp.nn.blocks import KINDS, BlockLinear, Blocks, RoundedRows, product

needs_kernels = pytest.mark.skipif(not blocks.is_native(), reason="the kernels cannot be compiled on this machine")


def random(rows: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "is_native", lambda: False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 16, 40])
def test_a_matrix_comes_back_from_its_tiles(kind: str, rows: int) -> None:
    low, high = (0, 15) if kind == "q4" else (-127, 127)
    quants = torch.randint(low, high + 1, (rows, 96), dtype=torch.int8)
    scale, least = random(rows, 3).half(), random(rows, 3, 1).half()
    made = Blocks.make(quants, scale, least if kind == "q4" else None)
    assert (made.kind, made.shape) == (kind, (rows, 96))
    assert torch.equal(made.quants, quants)
    assert torch.equal(made.scale, scale)
    assert made.least is None if kind == "q8" else torch.equal(torch.as_tensor(made.least), least)


@pytest.mark.parametrize(("kind", "steps"), [("q4", 15), ("q8", 254)])
def test_rounding_is_off_by_half_a_step_at_most(kind: str, steps: int) -> None:
    weight = random(24, 64)
    each = weight.unflatten(1, (2, 32))
    span = each.amax(-1) - each.amin(-1) if kind == "q4" else 2 * each.abs().amax(-1)
    off = (Blocks.of(weight, kind).floats() - weight).unflatten(1, (2, 32)).abs().amax(-1)
    assert bool((off <= span / steps * 0.5 + 4e-3 * span).all())  # and the rounding of scale and least to halves


def test_careful_rounding_loses_less_and_finds_the_steps_of_earlier_rounding() -> None:
    def lost(weight: torch.Tensor, careful: bool) -> float:
        return float((Blocks.of(weight, "q8", careful).floats() - weight).square().mean().sqrt())

    weight = random(256, 320)
    assert lost(weight, True) < 0.95 * lost(weight, False)
    assert lost(Blocks.of(weight, "q4").floats(), True) < 0.75 * lost(Blocks.of(weight, "q4").floats(), False)
    assert torch.equal(Blocks.of(weight * 0, "q8", careful=True).floats(), weight * 0)
    assert Blocks.of(weight, "q8", careful=True).floats().abs().max() <= weight.abs().max() * (1 + 0.5 / 108)


@pytest.mark.parametrize("kind", KINDS)
def test_a_block_of_equal_numbers(kind: str) -> None:
    assert torch.equal(Blocks.of(torch.zeros(2, 32), kind).floats(), torch.zeros(2, 32))
    assert torch.allclose(Blocks.of(torch.full((2, 32), 0.5), kind).floats(), torch.full((2, 32), 0.5), rtol=1e-3)


@pytest.mark.parametrize("rows", [(16, 32, 5), (5, 16, 3)], ids=["whole tiles", "cut tiles"])
@pytest.mark.parametrize("kind", KINDS)
def test_joined_rows_are_those_of_the_parts(kind: str, rows: tuple[int, ...]) -> None:
    parts = [Blocks.of(random(n, 64, n), kind) for n in rows]
    joined = Blocks.join(parts)
    assert joined.kind == kind
    assert torch.equal(joined.floats(), torch.cat([part.floats() for part in parts]))


def test_parts_of_two_kinds_become_one_of_eight_bits() -> None:
    parts = [Blocks.of(random(16, 64), "q4"), Blocks.of(random(16, 64, 1), "q8")]
    joined = Blocks.join(parts)
    assert joined.kind == "q8"
    assert torch.allclose(joined.floats(), torch.cat([part.floats() for part in parts]), atol=0.02)


def test_what_cannot_be_kept_in_blocks() -> None:
    with pytest.raises(ValueError, match="do not divide into blocks of 32"):
        Blocks.of(torch.zeros(2, 40), "q8")
    with pytest.raises(ValueError, match="cannot be kept as 'q5'"):
        Blocks.of(torch.zeros(2, 32), "q5")


def test_a_product_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """x is 127 and -64 (scale 1), weights 2 q + 1 in q4 and 0.5 q in q8."""
    x = torch.zeros(1, 32)
    x[0, :2] = torch.tensor([127.0, -64.0])
    quants = torch.zeros(1, 32, dtype=torch.int8)
    quants[0, :2] = torch.tensor([3, 15])
    q4 = Blocks.make(quants, torch.full((1, 1), 2.0).half(), torch.ones(1, 1).half())
    q8 = Blocks.make(-quants, torch.full((1, 1), 0.5).half())
    assert product(x, q4).item() == 2 * (3 * 127 - 15 * 64) + (127 - 64)
    assert product(x, q8).item() == -0.5 * (3 * 127 - 15 * 64)


@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 9, 17])
@pytest.mark.parametrize("shape", [(40, 96), (16, 32), (129, 320)])
def test_the_kernels_give_what_torch_gives(kind: str, rows: int, shape: tuple[int, int]) -> None:
    weight, bias, x = Blocks.of(random(*shape), kind), random(1, shape[0], 2)[0], random(rows, shape[1], 3) * 5
    assert torch.equal(BlockLinear(weight, bias)(x), product(x, weight) + bias)


@needs_kernels
def test_many_rows_are_rounded_alike() -> None:
    """A scale that is off by its last bit moves a number to the next step in one of ten thousand rows."""
    blocks, rows = Blocks.of(random(16, 96), "q4"), random(60_000, 96, 5)
    twice = torch.reciprocal(rows.unflatten(1, (3, 32)).abs().amax(-1, keepdim=True)) * 127
    assert bool(((rows.unflatten(1, (3, 32)) * twice).round() != RoundedRows.of(rows).quants).any())
    assert torch.equal(BlockLinear(blocks)(rows), product(rows, blocks))


@needs_kernels
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_numbers_do_not_overflow(kind: str) -> None:
    """All quants and all inputs at their ends: the sums within a block are as large as they can be."""
    low, high = (15, 15) if kind == "q4" else (-127, 127)
    quants = torch.stack([torch.full((64,), low), torch.full((64,), high)]).to(torch.int8)
    ones = torch.ones(2, 2).half()
    weight = Blocks.make(quants, ones, ones if kind == "q4" else None)
    x = torch.stack([torch.full((64,), 3e4), torch.full((64,), -3e4), torch.zeros(64), torch.full((64,), 1e-40)])
    assert torch.equal(BlockLinear(weight)(x), product(x, weight))


@needs_kernels
@pytest.mark.parametrize("spoilt", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_number_spoils_its_row_alone(kind: str, spoilt: float) -> None:
    weight, x = Blocks.of(random(40, 96), kind), random(5, 96, 3)
    x[2, 70] = spoilt
    found, expected = BlockLinear(weight)(x), product(x, weight)
    assert bool(found[2].isnan().all())
    assert bool(expected[2].isnan().all())
    rest = torch.tensor([0, 1, 3, 4])
    assert torch.equal(found[rest], expected[rest])


@needs_kernels
def test_a_processor_without_vectors_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels compiled for the least that there is, against torch."""
    flags = [flag for flag in native._FLAGS if flag != "-O3"]
    machine = ["-march=x86-64"] if platform.machine() == "x86_64" else []
    native._compile("gcc", (*flags, "-O1", *machine), tmp_path / "plain.so")
    monkeypatch.setattr(native, "load", lambda: ctypes.CDLL(str(tmp_path / "plain.so")))
    for kind in KINDS:
        assert all(blocks._agrees(kind, rows) for rows in (1, 3, 4, 11))


def test_a_copy_is_as_good() -> None:
    linear, x = BlockLinear(Blocks.of(random(20, 64), "q8")), random(3, 64, 1)
    assert torch.equal(copy.deepcopy(linear)(x), linear(x))
    with pytest.raises(ValueError, match="for a CPU, not for inputs on meta"):
        linear(x.to("meta"))
    with pytest.raises(ValueError, match="not those of 40 rows"):
        Blocks(Blocks.of(random(20, 64), "q8").tiles, 40)


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_kernels), False], ids=["kernels", "torch"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_the_same_alone_and_among_others(kind: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        by_torch(monkeypatch)
    linear, x = BlockLinear(Blocks.of(random(48, 160), kind)), random(37, 160, 1)
    whole = linear(x)
    for size in range(1, 12):
        assert torch.equal(torch.cat([linear(piece) for piece in x.split(size)]), whole)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert torch.equal(linear(x), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("compiled", [pytest.param(True, marks=needs_kernels), False], ids=["kernels", "torch"])
def test_shapes_and_kinds_of_inputs(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiled:
        by_torch(monkeypatch)
    linear = BlockLinear(Blocks.of(random(20, 64), "q8"))
    x = random(6, 64)
    assert linear(x.view(2, 3, 64)).shape == (2, 3, 20)
    assert linear(x[:0]).shape == (0, 20)
    assert torch.equal(linear(x.bfloat16()), linear(x.bfloat16().float()))
    assert torch.equal(linear(x.t().contiguous().t()), linear(x))  # rows that do not lie side by side
    with pytest.raises(ValueError, match="have 32 numbers, the weights 64"):
        linear(x[:, :32])


@pytest.mark.parametrize("kind", KINDS)
def test_a_product_is_near_that_of_the_floats(kind: str) -> None:
    weight, x = Blocks.of(random(64, 576), kind), random(5, 576, 4)
    exact = x @ weight.floats().T
    assert float((BlockLinear(weight)(x) - exact).norm() / exact.norm()) < 0.01
