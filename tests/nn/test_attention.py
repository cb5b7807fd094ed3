"""Attention under mixed precision on a CPU: the same as in float32 up to the rounding of what goes in and out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from speech_mtp.nn.kv_cache import attention
from speech_mtp.nn.visibility import FEW


def given(count: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    queries = torch.randn(2, 4, count, 16)
    keys, values = torch.randn(2, 2, 2, count, 16).unbind()
    return [x.to(torch.bfloat16).to(dtype).requires_grad_() for x in (queries, keys, values)]


def masks(count: int) -> list[Tensor | None]:
    sees = torch.ones(count, count, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    added = torch.zeros(2, 1, count, count, dtype=torch.bfloat16).masked_fill(~sees, float("-inf"))
    return [None, sees, added]


@pytest.mark.parametrize("kind", [0, 1, 2])
@pytest.mark.parametrize("count", [5, FEW + 2])
def test_values_and_gradients_are_those_of_float32(count: int, kind: int) -> None:
    mask, found = masks(count)[kind], []
    for dtype in (torch.bfloat16, torch.float32):
        inputs = given(count, dtype)
        plain = mask.to(dtype) if mask is not None and mask.is_floating_point() else mask
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            seen = attention(*inputs, plain, chain=mask is None)
        assert seen.dtype is dtype
        seen.float().square().sum().backward()
        assert all(x.grad is not None and x.grad.dtype is dtype for x in inputs)
        found.append([seen, *(x.grad for x in inputs)])
    for in_bf16, in_fp32 in zip(*found, strict=True):
        torch.testing.assert_close(in_bf16.float(), in_fp32, atol=0.1, rtol=0.02)


@pytest.mark.parametrize("kind", [0, 1, 2])
def test_few_queries_are_in_float32_whether_they_learn_or_not(kind: int) -> None:
    inputs, mask = given(16, torch.bfloat16), masks(16)[kind]
    wide = mask.float() if mask is not None and mask.is_floating_point() else mask
    with torch.autocast("cpu", torch.bfloat16):
        seen = attention(*inputs, mask, chain=mask is None)
        mixed = attention(inputs[0], *(x.detach().float() for x in inputs[1:]), wide, chain=mask is None)
        with torch.no_grad():
            measured = attention(*inputs, mask, chain=mask is None)
    expected = F.scaled_dot_product_attention(
        *(x.detach().float() for x in inputs), wide, is_causal=mask is None, enable_gqa=True
    )
    assert torch.equal(seen, expected.to(torch.bfloat16))
    assert torch.equal(mixed, seen)
    assert torch.equal(measured, seen)


def test_without_mixed_precision_it_is_torchs() -> None:
    queries, keys, values = (x.detach() for x in given(5, torch.bfloat16))
    expected = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=True)
    assert torch.equal(attention(queries, keys, values, None, chain=True), expected)
