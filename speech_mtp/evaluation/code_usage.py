"""How much of its codebooks a codec really uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from speech_mtp.types import Codes


@dataclass(frozen=True)
class CodeUsage:
    """``fraction`` of the ``size`` codes that occurred, and ``perplexity`` = exp(entropy in nats), 1 to size."""

    size: int
    fraction: float
    perplexity: float


def count_codes(codes: Codes, codebook_sizes: Sequence[int]) -> list[Tensor]:
    """Occurrences ``[V_k]`` of each code of each of the K streams; counts of batches add up. Padding is not counted."""
    valid = torch.arange(codes.frames.shape[2], device=codes.frames.device) < codes.lengths[:, None]  # [B, F]
    if len(codebook_sizes) != codes.frames.shape[1]:
        raise ValueError(f"{codes.frames.shape[1]} streams were given with {len(codebook_sizes)} codebook sizes.")
    return [torch.bincount(codes.frames[:, k][valid], minlength=size).cpu() for k, size in enumerate(codebook_sizes)]


def code_usage(counts: Tensor) -> CodeUsage:
    """Usage of one stream from its ``counts [V_k]``. Raises ``ValueError`` if nothing was counted."""
    total = counts.sum()
    if total == 0:
        raise ValueError("no frame was counted, so code usage is not defined; encode some audio first.")
    law = counts.double() / total
    entropy = -(law * law.clamp_min(1e-300).log()).sum()
    return CodeUsage(size=counts.numel(), fraction=float((counts > 0).double().mean()), perplexity=float(entropy.exp()))
