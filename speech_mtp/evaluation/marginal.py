"""What a language model itself says of the token after the next: the upper bound of every head that drafts it.

A head that looks two tokens ahead guesses ``x_{t+2}`` without knowing ``x_{t+1}``. The model's own distribution of it,
with the token between summed out, is (arXiv:2502.09419)::

    p(x_{t+2} | x_<=t) = sum_v p(x_{t+2} | x_<=t, v) p(v | x_<=t)

With all v it is exact; with the likeliest few it is that of a model that draws from these alone, and ``covered`` says
how much of the mass they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speech_mtp.evaluation.intervals import estimate, ratio
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.nn.kv_cache import KVCache

BRANCHES = 512
"""Continuations that are read at a time."""
DEFINITIONS = {
    "loss": "nats of the token after the next, over all tokens of the documents but the first two",
    "right": "the share of these tokens that are the likeliest",
    "covered": "the mass of the tokens between that were summed over",
    "interval": "holds 95 % of 1,000 bootstrap samples of the documents",
}


@dataclass
class Ahead:
    """After the places ``at [n]`` of a text: ``log_probs [n, V]`` of the token after the next, and the mass of the
    tokens between that were summed over, ``covered [n]``."""

    at: Tensor
    log_probs: Tensor
    covered: Tensor


@torch.inference_mode()
def two_ahead(lm: TextLM, ids: Sequence[int], top: int | None = None) -> Iterator[Ahead]:
    """After every token of a text, summed over the ``top`` likeliest tokens between (None: all).

    1. The text is read once; its keys and values are kept.
    2. Behind each place the candidates for the next token are read, each seeing the text up to there and itself.
    3. Their distributions are added up, each times the candidate's own probability.

    Raises ValueError for a text that the model cannot read, and for a ``top`` below 1.
    """
    if not 1 <= len(ids) < lm.max_positions:
        raise ValueError(f"The text has {len(ids)} tokens; the model reads 1 to {lm.max_positions - 1} and one more.")
    if top is not None and top < 1:
        raise ValueError(f"top is {top}; sum over one token at least.")
    count = min(top or lm.vocab_size, lm.vocab_size)
    cache = lm.open(1, len(ids) + BRANCHES).cache
    index, mask = cache.behind(len(ids))
    tokens = torch.tensor([ids], device=lm.device)
    out = lm.trunk_states(lm.embed(tokens), index, mask, cache)
    cache.advance(torch.full_like(cache.lengths, len(ids)), len(ids))
    for at in torch.arange(len(ids), device=lm.device).split(max(1, BRANCHES // count)):
        first = lm.output.logits(out.top[0, at]).float().softmax(-1)
        yield _summed(lm, cache, at, *first.topk(count))


def _summed(lm: TextLM, cache: KVCache, at: Tensor, chances: Tensor, candidates: Tensor) -> Ahead:
    """``chances, candidates [n, v]`` of the token between."""
    total = torch.zeros(len(at), lm.vocab_size, device=lm.device)
    size = max(1, BRANCHES // len(at))
    for weights, tokens in zip(chances.split(size, 1), candidates.split(size, 1), strict=True):
        probs = _after(lm, cache, at, tokens).softmax(-1)
        total += (weights[..., None] * probs).sum(1)
    covered = chances.sum(-1)
    return Ahead(at, (total / covered[:, None]).log(), covered)


def _after(lm: TextLM, cache: KVCache, at: Tensor, tokens: Tensor) -> Tensor:
    """The scores ``[n, v, V]`` after the text up to ``at [n]`` and each of ``tokens [n, v]``. The cache is left as it
    was: what is read is written behind its valid entries."""
    flat, place = tokens.reshape(1, -1), at.repeat_interleave(tokens.shape[1])
    known, new = int(cache.lengths), flat.shape[1]
    cache.make_room(new)
    slots = torch.arange(cache.size, device=flat.device)
    sees = (slots <= place[:, None]) | (slots == known + torch.arange(new, device=flat.device)[:, None])
    out = lm.trunk_states(lm.embed(flat), place[None] + 1, sees[None, None], cache)
    return lm.output.logits(out.top[0]).float().unflatten(0, tokens.shape)


def two_ahead_report(
    lm: TextLM,
    documents: Iterable[Sequence[int]],
    length: int,
    top: int | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Loss and best guesses over ``documents`` of ids, of each the first ``length`` tokens.

    Raises ValueError where no document has three tokens, and as :func:`two_ahead`.
    """
    rows = []
    for number, ids in enumerate(documents, start=1):
        report(f"document {number}")
        if len(ids) > 2:
            rows.append(_sums(lm, list(ids[:length]), top))
    if not rows:
        raise ValueError("There is no document of three tokens; give more text.")
    sums = torch.tensor(rows, dtype=torch.float64)
    figures = {name: estimate(sums[:, [column, 3]], ratio) for column, name in enumerate(("loss", "right", "covered"))}
    return {**figures, "tokens": int(sums[:, 3].sum()), "top": top, "length": length, "definitions": DEFINITIONS}


def _sums(lm: TextLM, ids: list[int], top: int | None) -> tuple[float, float, float, float]:
    """Nats, right guesses, covered mass and number of the tokens of a document from the third on."""
    nats = right = covered = 0.0
    targets = torch.tensor(ids[2:], device=lm.device)
    for ahead in two_ahead(lm, ids[:-2], top):
        token = targets[ahead.at]
        nats -= float(ahead.log_probs.gather(1, token[:, None]).sum())
        right += float((ahead.log_probs.argmax(-1) == token).sum())
        covered += float(ahead.covered.sum())
    return nats, right, covered, float(len(targets))
