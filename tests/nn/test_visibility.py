"""Who sees whom: the rule, its dense mask, and attention by stripes and by blocks against plain attention."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask

from speech_mtp.nn.kv_cache import attention
from speech_mtp.nn.visibility import STRIPE, Stripes, dense, mask_of, within_segments

CPU = torch.device("cpu")


def test_no_document_sees_another() -> None:
    segment = torch.tensor([[1, 1, 2, 2, 2], [1, 1, 1, 1, 0]])
    mask = dense(within_segments(segment), 2, 5, CPU)
    assert mask.shape == (2, 1, 5, 5)
    assert mask[0, 0].long().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [0, 0, 1, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1],
    ]
    assert mask[1, 0, 4].long().tolist() == [0, 0, 0, 0, 1]


def rows(heads: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Segments of two rows, a border inside a stripe and one far behind; queries, keys and values of them."""
    torch.manual_seed(0)
    length = 2 * STRIPE + 40
    segment = torch.ones(2, length, dtype=torch.long)
    segment[0, 50:] = 2
    segment[:, STRIPE + 30 :] = 3
    return segment, torch.randn(2, 4, length, 16), *torch.randn(2, 2, heads, length, 16).unbind()


@pytest.mark.parametrize("heads", [4, 2])
def test_stripes_and_blocks_give_what_a_dense_mask_gives(heads: int) -> None:
    segment, *qkv = rows(heads)
    rule, length = within_segments(segment), segment.shape[1]
    expected = F.scaled_dot_product_attention(*qkv, dense(rule, 2, length, CPU), enable_gqa=heads != 4)
    stripes = mask_of(rule, 2, length, CPU)
    assert isinstance(stripes, Stripes)
    assert stripes.ranges == [(0, STRIPE), (0, 2 * STRIPE), (STRIPE + 30, length)]
    torch.testing.assert_close(attention(*qkv, stripes), expected, atol=1e-5, rtol=1e-4)
    blocks = create_block_mask(rule, 2, None, length, length, "cpu")
    torch.testing.assert_close(attention(*qkv, blocks), expected, atol=1e-5, rtol=1e-4)


def test_any_rule_may_say_who_sees_whom() -> None:
    def reversed_time(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key >= query

    segment, *qkv = rows(4)
    stripes = mask_of(reversed_time, 2, segment.shape[1], CPU)
    assert isinstance(stripes, Stripes)
    assert stripes.ranges[1] == (STRIPE, segment.shape[1])
    expected = F.scaled_dot_product_attention(*qkv, dense(reversed_time, 2, segment.shape[1], CPU))
    torch.testing.assert_close(attention(*qkv, stripes), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_forward_and_backward() -> None:
    segment, *qkv = rows(2)
    rule, length, cuda = within_segments(segment), segment.shape[1], torch.device("cuda")
    here = [x.clone().requires_grad_() for x in qkv]
    there = [x.to(cuda).requires_grad_() for x in qkv]
    expected = attention(*here, mask_of(rule, 2, length, CPU))
    found = attention(*there, mask_of(within_segments(segment.to(cuda)), 2, length, cuda))
    torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=1e-3)
    for output in (expected, found):
        output.square().sum().backward()
    for ours, theirs in zip(there, here, strict=True):
        assert ours.grad is not None
        torch.testing.assert_close(ours.grad.cpu(), theirs.grad, atol=1e-2, rtol=1e-2)
