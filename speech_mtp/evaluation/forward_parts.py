"""Where the time of one forward of a Llama-like trunk goes, part by part, as ``transformers`` does it and as we do.

Random weights of the model's sizes, those of all layers in turn, so that none stays in the processor's cache; the
shortest of 30 runs counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from speech_mtp.decoding.sampling import best
from speech_mtp.lm.decoder import Norm
from speech_mtp.nn.packed import PackedLinear

ROWS = (1, 8, 16)
ENTRIES = 256
"""Entries that the cache holds while attention is timed."""


def microseconds(run: Callable[[], object], repeats: int = 30) -> float:
    """The shortest of ``repeats`` runs, after three more."""
    times = []
    for _ in range(repeats + 3):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times[3:]) * 1e6


def products(sizes: list[tuple[int, int]], copies: int, rows: int, dtype: torch.dtype) -> tuple[float, float]:
    """Time of the products with weights of ``sizes`` (out, in), by ``F.linear`` and packed; the mean of ``copies``."""
    plain = packed = 0.0
    for out, dim in sizes:
        weights = [torch.randn(out, dim, dtype=dtype) for _ in range(copies)]
        linears = [PackedLinear(weight) for weight in weights]
        x = torch.randn(rows, dim, dtype=dtype)
        plain += microseconds(partial(_each, [partial(F.linear, weight=weight) for weight in weights], x)) / copies
        packed += microseconds(partial(_each, linears, x)) / copies
    return plain, packed


def _each(maps: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> None:
    for function in maps:
        function(x)


@torch.inference_mode()
def forward_parts(shape: dict[str, Any], dtype: torch.dtype) -> list[dict[str, Any]]:
    """Rows of ``part``, ``rows`` (tokens at once), ``plain_us`` and ``ours_us``: times of a layer (``products``,
    ``attention``, ``norm``), of the ``output`` layer, and of the greedy ``choice``. ``shape`` is :meth:`TextLM.shape`.
    """
    dim, heads, keys, width = (shape[key] for key in ("dim", "num_heads", "num_kv_heads", "head_dim"))
    inner, vocab, layers = (shape[key] for key in ("intermediate_size", "vocab_size", "num_layers"))
    layer = [((heads + 2 * keys) * width, dim), (dim, heads * width), (2 * inner, dim), (dim, inner)]
    found: list[tuple[str, int, float, float]] = []
    for rows in ROWS:
        found.append(("products", rows, *products(layer, layers, rows, dtype)))
        found.append(("output", rows, *products([(vocab, dim)], 1, rows, dtype)))
    # On a CPU ours attends and normalises in float32.
    attention = [_attention(heads, keys, width, kind) for kind in (dtype, torch.float32)]
    found.append(("attention", 1, attention[0], attention[1]))
    eps, x, weight = shape["rms_norm_eps"], torch.randn(1, 1, dim), torch.randn(dim)
    ours = Norm(SimpleNamespace(weight=weight, variance_epsilon=eps), torch.float32)
    low, low_weight = x.to(dtype), weight.to(dtype)
    plain = microseconds(lambda: F.rms_norm(low, (dim,), low_weight, eps))
    found.append(("norm", 1, plain, microseconds(lambda: ours(x))))
    scores = torch.randn(1, vocab, dtype=dtype)
    found.append(("choice", 1, microseconds(lambda: scores.argmax(-1)), microseconds(lambda: best(scores))))
    return [dict(zip(("part", "rows", "plain_us", "ours_us"), row, strict=True)) for row in found]


def _attention(heads: int, keys: int, width: int, dtype: torch.dtype) -> float:
    q, k = torch.randn(1, heads, 1, width, dtype=dtype), torch.randn(1, keys, ENTRIES, width, dtype=dtype)
    return microseconds(lambda: F.scaled_dot_product_attention(q, k, k, enable_gqa=heads != keys))
