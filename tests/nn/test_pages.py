"""Weights in large pages: the same bytes, apart from one another, freed with what uses them."""

from __future__ import annotations

import copy
import gc
from pathlib import Path

import pytest
import torch

from speech_mtp.nn import pages
from speech_mtp.nn.blocks import BlockLinear, Blocks
from tests.nn.test_blocks import needs_kernels


def parts(*sizes: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(256, (size,), generator=generator, dtype=torch.uint8) for size in sizes]


def test_bytes_are_the_same_and_apart() -> None:
    given = [*parts(1, 63, 64, 65, 1000), *parts(pages.CHUNK + 1), *parts(5)]
    found = [pages.settled(one) for one in given]
    for one, kept in zip(given, found, strict=True):
        assert torch.equal(one, kept)
        assert kept.data_ptr() % pages.ALIGNED == 0
        one.zero_()
    for number, kept in enumerate(found):
        assert kept.any(), "a copy"
        kept.fill_(number)
    assert all((kept == number).all() for number, kept in enumerate(found))
    turned = torch.arange(12, dtype=torch.uint8).view(3, 4).T
    assert torch.equal(pages.settled(turned), turned)
    assert pages.settled(torch.empty(0, 3, dtype=torch.uint8)).shape == (0, 3)


def resident() -> int:
    """Bytes of anonymous memory of this process."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["RssAnon"].split()[0]) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the counts of Linux")
def test_memory_is_given_back() -> None:
    size, before = 8 * pages.CHUNK, resident()
    kept = pages.settled(torch.ones(size, dtype=torch.uint8))
    assert resident() > before + size // 2
    del kept
    gc.collect()
    assert resident() < before + size // 2


def test_what_is_made_in_inference_mode_hinders_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_rest", torch.empty(0, dtype=torch.uint8))
    (x,) = parts(1000)
    with torch.inference_mode():
        first = pages.settled(x)
    assert torch.equal(pages.settled(x), first)
    with torch.inference_mode():
        assert torch.equal(pages.settled(x.clone()), first)


@pytest.mark.parametrize("missing", [True, False])
def test_a_system_without_large_pages_keeps_what_it_has(missing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Refused:
        MAP_PRIVATE = MAP_ANONYMOUS = MADV_HUGEPAGE = 0

        @staticmethod
        def mmap(*given: object, **more: object) -> None:
            raise OSError("no memory of that kind")

    monkeypatch.setattr(pages, "mmap", object() if missing else Refused)
    (x,) = parts(3 * pages.CHUNK)
    assert pages.settled(x) is x


@needs_kernels
def test_a_copy_holds_its_own_weights_alone() -> None:
    linear = BlockLinear(Blocks.of(torch.randn(32, 64), "q8"))
    twin = copy.deepcopy(linear)
    assert twin.tiles.untyped_storage().nbytes() == twin.tiles.numel()
    x = torch.randn(3, 64)
    expected = linear(x)
    linear.tiles.zero_()
    assert torch.equal(twin(x), expected)
