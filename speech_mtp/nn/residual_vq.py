"""Residual vector quantisation with factorised, normalised codes (Kumar et al. 2023, arXiv:2306.06546, section 3.2).

Each book codes what the books before it left over. A book looks its codes up in a space of few dimensions, by the angle
alone, which keeps nearly all codes in use without restarts; its own projections lead there and back. Books learn from
the codebook loss and encoders from the commitment loss of VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

COMMITMENT = 0.25
"""Weight of the commitment against the codebook loss."""


class Book(nn.Module):
    """``size`` codes of ``dim_code`` numbers for vectors of ``dim``."""

    def __init__(self, size: int, dim: int, dim_code: int) -> None:
        super().__init__()
        self.enter = nn.Linear(dim, dim_code)
        self.codes = nn.Embedding(size, dim_code)
        self.leave = nn.Linear(dim_code, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``x [B, F, dim]`` -> values ``[B, F, dim]`` (straight-through), codes ``[B, F]``, loss ``[B, F]``."""
        place = self.enter(x)
        codes = (F.normalize(place, dim=-1) @ F.normalize(self.codes.weight, dim=-1).T).argmax(-1)
        found = self.codes(codes)
        loss = (found - place.detach()).square().mean(-1) + COMMITMENT * (place - found.detach()).square().mean(-1)
        return self.leave(place + (found - place).detach()), codes, loss

    def values(self, codes: Tensor) -> Tensor:
        """Codes ``[B, F]`` -> ``[B, F, dim]``."""
        out: Tensor = self.leave(self.codes(codes))
        return out


class ResidualVQ(nn.Module):
    """A book for each of ``sizes``, in order."""

    def __init__(self, sizes: tuple[int, ...], dim: int, dim_code: int = 8) -> None:
        super().__init__()
        if not sizes or min(sizes) < 2:
            raise ValueError(f"The books have {sizes} codes; there must be a book, and every book needs 2 at least.")
        self.books = nn.ModuleList(Book(size, dim, dim_code) for size in sizes)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """``x [B, F, dim]``, ``mask [B, F, 1]`` -> the values of each book ``[B, F, dim]``, codes ``[B, K, F]``, and
        the loss over the frames that count."""
        rest, parts, codes, losses = x, [], [], []
        for book in self.books:
            values, chosen, loss = book(rest)
            rest = rest - values
            parts.append(values)
            codes.append(chosen)
            losses.append(loss)
        total = (torch.stack(losses).sum(0) * mask[..., 0]).sum() / mask.sum().clamp(min=1)
        return parts, torch.stack(codes, 1), total

    def parts(self, codes: Tensor) -> list[Tensor]:
        """Codes ``[B, K, F]`` -> the values of each book ``[B, F, dim]``; their sum is what was coded."""
        books = cast(Iterable[Book], self.books)
        return [book.values(codes[:, k]) for k, book in enumerate(books)]
