"""Codebooks that follow their vectors by running means, without a gradient (van den Oord et al. 2017,
arXiv:1711.00937, appendix A.1), as EnCodec (arXiv:2210.13438, section 3.2) and Mimi train theirs.

A code that is hardly chosen starts again at a vector of the batch. The statistics are those of one process: with
several, sum what :meth:`EmaBook.learn` counts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class EmaBook(nn.Module):
    """``size`` codes of ``dim`` numbers. ``decay`` is that of the means; a code that is chosen less than ``least``
    times as often as the average one starts again."""

    usage: Tensor
    sums: Tensor
    begun: Tensor

    def __init__(self, size: int, dim: int, decay: float = 0.99, least: float = 0.1) -> None:
        super().__init__()
        self.decay, self.least = decay, least
        self.register_buffer("usage", torch.zeros(size))
        self.register_buffer("sums", torch.zeros(size, dim))
        self.register_buffer("begun", torch.tensor(False))

    @property
    def vectors(self) -> Tensor:
        """``[size, dim]``."""
        return self.sums / self.usage.clamp(min=1e-5)[:, None]

    def nearest(self, x: Tensor) -> Tensor:
        """``x [N, dim]`` -> codes ``[N]``."""
        return torch.cdist(x[None], self.vectors[None])[0].argmin(-1)

    @torch.no_grad()
    def begin(self, x: Tensor) -> None:
        """Give every code the place of one of the vectors ``x [N, dim]``."""
        self.place(_some(x, len(self.usage)))

    @torch.no_grad()
    def place(self, vectors: Tensor) -> None:
        """Give the codes the ``vectors [size, dim]``."""
        self.sums.copy_(vectors)
        self.usage.fill_(1.0)
        self.begun.fill_(True)

    @torch.no_grad()
    def learn(self, x: Tensor) -> None:
        """Move towards the vectors ``x [N, dim]`` of a batch."""
        codes = self.nearest(x)
        chosen = F.one_hot(codes, len(self.usage)).to(x)
        self.usage.lerp_(chosen.sum(0), 1 - self.decay)
        self.sums.lerp_(chosen.T @ x, 1 - self.decay)
        unused = self.usage < self.least * self.usage.mean()
        fresh = _some(x, len(self.usage))
        level = self.usage.mean()
        self.usage.copy_(torch.where(unused, level, self.usage))
        self.sums.copy_(torch.where(unused[:, None], fresh * level, self.sums))


def _some(x: Tensor, count: int) -> Tensor:
    """``count`` rows of ``x``, each as rarely twice as can be."""
    rounds = -(-count // len(x))
    return x[torch.cat([torch.randperm(len(x), device=x.device) for _ in range(rounds)])[:count]]


def quantised(books: list[EmaBook], x: Tensor, learn: bool) -> tuple[list[Tensor], Tensor]:
    """``x [B, D, F]`` by residual ``books`` -> the values of each ``[B, D, F]`` and the commitment of ``x`` to them.

    The sum of the values is straight-through: the first one hands the gradient on, the others have none. With ``learn``
    the books move, after they were read.
    """
    rest = x.transpose(1, 2)
    parts: list[Tensor] = []
    losses: list[Tensor] = []
    for book in books:
        flat = rest.detach().flatten(0, 1)
        if learn and not book.begun:
            book.begin(flat)
        found = book.vectors[book.nearest(flat)].view(rest.shape)
        losses.append((rest - found).square().mean())
        parts.append(found if parts else rest + (found - rest).detach())
        if learn:
            book.learn(flat)
        rest = rest - found
    return [part.transpose(1, 2) for part in parts], torch.stack(losses).mean()
