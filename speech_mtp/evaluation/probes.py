"""Small networks that tell how much one thing says about another, by what they predict on sentences kept out.

A probe reads columns of whole numbers (phonemes, codes, positions). A *linear* probe is a linear map of their one-hot
vectors; the other embeds them and has one hidden layer. Both are trained for a fixed number of steps; the weights
that were best on a validation part count. Their cross entropy bounds the conditional entropy from above.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH = 256
CHECK_EVERY = 100
EMBEDDING, HIDDEN, DROPOUT = 16, 128, 0.3
RATE, LINEAR_RATE, DECAY = 2e-3, 4e-3, 0.1


@dataclass(frozen=True)
class Columns:
    """``values [N, C]`` int64; column c has values from 0 to ``sizes[c] - 1``."""

    values: Tensor
    sizes: tuple[int, ...]

    def __add__(self, other: Columns) -> Columns:
        return Columns(torch.cat([self.values, other.values], 1), self.sizes + other.sizes)


@dataclass(frozen=True)
class Split:
    """Frames ``[N]`` to train on, to choose the weights by, and to measure on."""

    train: Tensor
    validation: Tensor
    test: Tensor


class Probe(nn.Module):
    """``columns [N, C]`` -> ``[N, out]``. ``start [out]`` is the bias before training."""

    first: Tensor

    def __init__(self, sizes: tuple[int, ...], start: Tensor, linear: bool) -> None:
        super().__init__()
        first = torch.tensor([0, *sizes[:-1]]).cumsum(0)
        self.register_buffer("first", first)
        self.bias = nn.Parameter(start.clone())
        dim = len(start) if linear else EMBEDDING
        self.table = nn.Embedding(sum(sizes), dim)
        nn.init.normal_(self.table.weight, std=0.0 if linear else 0.5)
        self.inner: nn.Module | None = None
        if not linear:
            last = nn.Linear(HIDDEN, len(start), bias=False)
            nn.init.zeros_(last.weight)
            enter = nn.Linear(len(sizes) * EMBEDDING, HIDDEN)
            self.inner = nn.Sequential(nn.Dropout(DROPOUT / 2), enter, nn.GELU(), nn.Dropout(DROPOUT), last)

    def forward(self, columns: Tensor) -> Tensor:
        vectors = self.table(columns + self.first)
        return self.bias + (vectors.sum(1) if self.inner is None else self.inner(vectors.flatten(1)))


def fit_classes(
    columns: Columns, target: Tensor, num_classes: int, split: Split, steps: int, linear: bool = False
) -> Tensor:
    """Log-probabilities ``[len(split.test), num_classes]`` of a probe for ``target [N]``, starting at their shares."""
    start = unigram(target[split.train], num_classes)
    probe = Probe(columns.sizes, start, linear)
    return _fit(probe, columns.values, target, split, steps, F.cross_entropy).log_softmax(-1)


def fit_values(columns: Columns, target: Tensor, split: Split, steps: int) -> Tensor:
    """What a linear probe says of ``target [N, T]`` at ``split.test``. NaN entries are neither learnt nor judged."""
    known = target[split.train]
    mean = known.nanmean(0)
    deviation = (known - mean).square().nanmean(0).sqrt().clamp_min(1e-6)
    probe = Probe(columns.sizes, torch.zeros(target.shape[1]), linear=True)
    return _fit(probe, columns.values, (target - mean) / deviation, split, steps, _square_error) * deviation + mean


def unigram(target: Tensor, num_classes: int) -> Tensor:
    """Log of the shares of the classes in ``target [N]``, each seen half a time more."""
    counts = torch.bincount(target, minlength=num_classes).float() + 0.5
    return (counts / counts.sum()).log()


def _square_error(found: Tensor, target: Tensor) -> Tensor:
    known = ~target.isnan()
    return (found - target)[known].square().mean() if known.any() else found.sum() * 0


def _fit(probe: Probe, columns: Tensor, target: Tensor, split: Split, steps: int, loss) -> Tensor:  # type: ignore[no-untyped-def]
    """Outputs on the test frames by the weights that were best on the validation frames."""
    rng = torch.Generator().manual_seed(0)
    rate = LINEAR_RATE if probe.inner is None else RATE
    optimizer = torch.optim.AdamW(probe.parameters(), lr=rate, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    best, kept = float("inf"), copy.deepcopy(probe.state_dict())
    for step in range(steps + 1):
        if step % CHECK_EVERY == 0 or step == steps:
            error = float(loss(_outputs(probe, columns[split.validation]), target[split.validation]))
            if error < best:
                best, kept = error, copy.deepcopy(probe.state_dict())
        rows = split.train[torch.randint(len(split.train), (BATCH,), generator=rng)]
        optimizer.zero_grad()
        loss(probe(columns[rows]), target[rows]).backward()
        optimizer.step()
        schedule.step()
    probe.load_state_dict(kept)
    return _outputs(probe, columns[split.test])


@torch.no_grad()
def _outputs(probe: Probe, columns: Tensor) -> Tensor:
    probe.eval()
    out = torch.cat([probe(part) for part in columns.split(4096)])
    probe.train()
    return out
