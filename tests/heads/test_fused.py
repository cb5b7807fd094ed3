"""EAGLE-3's layer in one call of the compiled kernels: what it computes, and that its nodes do not see each other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from speech_mtp import plugins
from speech_mtp.heads._sequential import SequentialState
from speech_mtp.heads.base import Binding, TrunkShape
from speech_mtp.nn.blocks import BlockLinear, Blocks
from speech_mtp.nn.fused import BlockLayer, BlockLayers, FusedLayers
from speech_mtp.nn.kv_cache import KVCache
from tests.nn.test_blocks import needs_kernels

pytestmark = needs_kernels
DIM, VOCAB = 64, 23
SHAPE = TrunkShape(DIM, VOCAB, num_layers=6, num_heads=4, num_kv_heads=2, head_dim=16, intermediate_size=96)
LENGTHS = torch.tensor([9, 4])
PARENTS = [[-1, -1], [0, 1, 0], [3, 2]]  # three levels of a tree, each the numbers of nodes before


def random(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def head_of(dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    torch.manual_seed(1)
    embedding, norm = nn.Embedding(VOCAB, DIM).requires_grad_(False), nn.RMSNorm(DIM)
    head = plugins.build("heads", {"name": "eagle3", **settings}, shape=SHAPE)
    head.bind(Binding(embedding, lambda h: h @ embedding.weight.T, embedding.weight, norm))
    with torch.no_grad():
        for p in head.parameters():
            p.copy_(torch.randn(p.shape) * 0.15 + (p.ndim == 1))
    return head.to(dtype).prepare("q8")


def opened(head: Any, rows: int = 2) -> SequentialState:
    """Rows of 9 and 4 pairs, which are read in two pieces."""
    state: SequentialState = head.open(rows, torch.device("cpu"), torch.float32)
    hidden, x = random(rows, 9, len(head.taps), DIM), random(rows, 9, DIM, seed=1)
    head.read(state, hidden[:, :3], x[:, :3], torch.full((rows,), 3))
    head.read(state, hidden[:, 3:], x[:, 3:], LENGTHS[:rows] - 3)
    return state


def grown(head: Any, state: SequentialState) -> list[Tensor]:
    """The states after the newest pair and after every level of the tree."""
    found = [head.root(state)[:, None]]
    for level, parents in enumerate(PARENTS):
        x = random(len(state.last), len(parents), DIM, seed=2 + level)
        found.append(head.expand(state, x, torch.tensor(parents).expand(len(state.last), -1)))
    return found


@torch.no_grad()
def test_it_computes_what_the_layer_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    head, calls = head_of(), []
    over = FusedLayers._over
    monkeypatch.setattr(FusedLayers, "_over", lambda *given: calls.append(1) or over(*given))
    fused = grown(head, opened(head))
    assert len(calls) == 2 + len(PARENTS)
    head._fused = None
    for one, other in zip(fused, grown(head, opened(head)), strict=True):
        # A last bit may round an input of a product to the next of 255 numbers.
        torch.testing.assert_close(one, other, atol=0.03, rtol=0.01)
        assert float((one - other).square().mean() / other.square().mean()) < 1e-4


@torch.no_grad()
def test_a_node_sees_its_own_path_and_nothing_else() -> None:
    """The very numbers of a chain along the path, in a row of its own."""
    head = head_of()
    tree = torch.cat(grown(head, opened(head))[1:], 1)
    above = [parent for parents in PARENTS for parent in parents]
    vectors = torch.cat([random(2, len(p), DIM, seed=2 + level) for level, p in enumerate(PARENTS)], 1)
    for leaf in range(len(above)):
        path = [leaf]
        while above[path[0]] >= 0:
            path.insert(0, above[path[0]])
        for row in range(2):
            state = opened(head)
            one = state.clone()
            one.cache = state.cache.select(torch.tensor([row]))
            one.newest, one.last = state.newest[row : row + 1], state.last[row : row + 1]
            one.nodes, one.ancestors = state.nodes[row : row + 1], state.ancestors[row : row + 1]
            for d, node in enumerate(path):
                found = head.expand(one, vectors[row : row + 1, node : node + 1], torch.tensor([[d - 1]]))
            assert torch.equal(found[0, 0], tree[row, leaf]), (row, leaf)


@torch.no_grad()
def test_drafted_nodes_leave_with_the_next_read() -> None:
    head = head_of()
    drafted, plain = opened(head), opened(head)
    grown(head, drafted)
    hidden, x = random(2, 2, len(head.taps), DIM, seed=7), random(2, 2, DIM, seed=8)
    for state in (drafted, plain):
        head.read(state, hidden, x, torch.tensor([2, 1]))
    for one, other in zip(grown(head, drafted), grown(head, plain), strict=True):
        assert torch.equal(one, other)


def test_other_layers_stay_as_they_are() -> None:
    assert head_of(norm_before_residual=True)._fused is None
    floats = plugins.build("heads", {"name": "eagle3", "private": False}, shape=SHAPE)
    floats.bind(Binding(nn.Embedding(VOCAB, DIM), None, None, nn.RMSNorm(DIM)))
    assert floats.prepare()._fused is None
    again = head_of()
    for layer in again.modules():  # as if it were loaded anew
        vars(layer).pop("forward", None)
    assert again.prepare()._fused is None


@torch.no_grad()
def test_a_cache_in_half_precision_is_not_for_the_kernels() -> None:
    head = head_of(torch.bfloat16)
    state = head.open(1, torch.device("cpu"), torch.bfloat16)
    head.read(state, random(1, 3, len(head.taps), DIM).bfloat16(), random(1, 3, DIM).bfloat16(), torch.tensor([3]))
    assert state.cache.keys.dtype == torch.bfloat16
    assert bool(head.root(state).isfinite().all())


def test_vectors_at_the_side_are_for_layers_that_read_them() -> None:
    def product(outputs: int, inputs: int) -> BlockLinear:
        return BlockLinear(Blocks.of(random(outputs, inputs), "q8"))

    ones = torch.ones(DIM)
    products = (product(DIM, DIM), product(192, DIM), product(DIM, 96))
    narrow = BlockLayer(ones, product(128, DIM), None, None, products[0], ones, *products[1:])
    wide = BlockLayer(ones, product(128, 2 * DIM), None, None, products[0], ones, *products[1:], side=ones)
    cache = KVCache.empty(1, 1, 2, 8, 16, torch.device("cpu"))
    x, at = random(1, 2, DIM), torch.arange(2)[None]
    for layer, side in ((narrow, x), (wide, None), (wide, x[:, :1])):
        layers = FusedLayers(BlockLayers([layer], ones, 4, 2, 16, torch.ones(8), 1e-5))
        with pytest.raises(ValueError, match="Vectors at the side are for layers that read them"):
            layers(x, at, None, cache, (1,), side)
    layers = FusedLayers(BlockLayers([wide], ones, 4, 2, 16, torch.ones(8), 1e-5))
    with pytest.raises(ValueError, match="1 rows of 2 nodes have positions"):
        layers(x, at, torch.ones(1, 2, 1, dtype=torch.bool), cache, (1,), x)
