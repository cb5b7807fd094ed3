"""What a language model itself says of a token further ahead: the upper bound of every head that drafts it.

A head that looks k tokens ahead guesses ``x_{t+k}`` without knowing the tokens between. The model's own distribution of
it, with these summed out, is (arXiv:2502.09419, there with k = 2)::

    p(x_{t+k} | x_<=t) = sum_w p(x_{t+k} | x_<=t, w) p(w | x_<=t)        w: the k - 1 tokens between

With all w it is exact. With the likeliest few after each token it is the law given that all tokens between are among
these, and ``covered`` says how much of the mass they hold. With w drawn from the model it is an estimate without bias,
whose logarithm is on average too low: the loss is an upper bound, which falls with the number of draws.
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
MOST = 1 << 16
"""Continuations of one place."""
DEFINITIONS = {
    "loss": "nats of the token that far ahead, over the first `length` tokens of each document but the first k",
    "right": "the share of these tokens that are the likeliest",
    "covered": "the mass of the tokens between that were summed over",
    "interval": "holds 95 % of 1,000 bootstrap samples of the documents",
}


@dataclass(frozen=True)
class Between:
    """How the tokens between are chosen: all of them, the ``top`` likeliest after each token, or ``samples`` drawn
    from the model. Raises ValueError for both, and for less than one."""

    top: int | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        if self.top is not None and self.samples is not None:
            raise ValueError("The tokens between are summed over or drawn; give top or samples, not both.")
        for name in ("top", "samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; use one at least.")


@dataclass
class Ahead:
    """After the places ``at [n]`` of a text: ``log_probs [n, V]`` of the token so far ahead, and the mass of the tokens
    between that were summed over, ``covered [n]`` (1 where they were drawn)."""

    at: Tensor
    log_probs: Tensor
    covered: Tensor


@dataclass
class _Paths:
    """Of n places P continuations each: ``tokens [n, P, j]``, and what each counts, ``weights [n, P]``."""

    tokens: Tensor
    weights: Tensor


@torch.inference_mode()
def look_ahead(
    lm: TextLM, ids: Sequence[int], k: int = 2, between: Between | None = None, seed: int = 0
) -> Iterator[Ahead]:
    """After every token of a text, ``k`` tokens ahead. Draws depend on ``seed`` and on the text alone.

    1. The text is read once; its keys and values are kept.
    2. Behind each place the candidates for the next token are read, each seeing the text up to there and itself; then
       those for the token after each, and so on.
    3. The distributions after the last are added up, each times the probability of its continuation.

    Raises ValueError for a text that the model cannot read, for a ``k`` below 2, and for more continuations than can be
    read.
    """
    if k < 2:
        raise ValueError(f"k is {k}; the model itself says what is next, so look 2 tokens ahead or more.")
    if not 1 <= len(ids) <= lm.max_positions - (k - 1):
        more = "one more" if k == 2 else f"{k - 1} more"
        raise ValueError(
            f"The text has {len(ids)} tokens; the model reads 1 to {lm.max_positions - (k - 1)} and {more}."
        )
    between = between or Between()
    count = between.samples or min(between.top or lm.vocab_size, lm.vocab_size) ** (k - 1)
    if count > MOST:
        raise ValueError(
            f"{count} continuations of {k - 1} tokens are more than {MOST}; sum over fewer (top), or draw some "
            "(samples)."
        )
    cache = lm.open(1, len(ids) + BRANCHES).cache
    index, mask = cache.behind(len(ids))
    tokens = torch.tensor([ids], device=lm.device)
    out = lm.trunk_states(lm.embed(tokens), index, mask, cache)
    cache.advance(torch.full_like(cache.lengths, len(ids)), len(ids))
    noise = torch.Generator().manual_seed(seed)
    for at in torch.arange(len(ids), device=lm.device).split(max(1, BRANCHES // count)):
        first = lm.output.logits(out.top[0, at]).float().softmax(-1)
        paths = _Paths(first.new_zeros(len(at), 1, 0, dtype=torch.long), first.new_ones(len(at), 1))
        paths = _longer(paths, first[:, None], between, noise)
        for _ in range(k - 2):
            probs = torch.cat([part for _, part in _after(lm, cache, at, paths.tokens)], 1)
            paths = _longer(paths, probs, between, noise)
        total = torch.zeros_like(first)
        for block, probs in _after(lm, cache, at, paths.tokens):
            total += (paths.weights[:, block, None] * probs).sum(1)
        covered = paths.weights.sum(-1)
        yield Ahead(at, (total / covered[:, None]).log(), covered)


def _longer(paths: _Paths, probs: Tensor, between: Between, noise: torch.Generator) -> _Paths:
    """Each continuation with its candidates for the next token, of which ``probs [n, P, V]`` is the distribution."""
    if between.samples is None:
        chances, tokens = probs.topk(min(between.top or probs.shape[-1], probs.shape[-1]))
    else:
        # All draws part at the first token, and go on alone.
        each = between.samples if not paths.tokens.shape[2] else 1
        drawn = probs.flatten(0, 1).cpu().multinomial(each, replacement=True, generator=noise)
        tokens = drawn.to(probs.device).unflatten(0, probs.shape[:2])
        chances = torch.full_like(tokens, 1 / each, dtype=probs.dtype)
    before = paths.tokens[:, :, None].expand(-1, -1, tokens.shape[-1], -1)
    return _Paths(
        torch.cat([before, tokens[..., None]], -1).flatten(1, 2), (paths.weights[..., None] * chances).flatten(1)
    )


def _after(lm: TextLM, cache: KVCache, at: Tensor, paths: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The distributions ``[n, p, V]`` after the text up to ``at [n]`` and each of ``paths [n, P, j]``, and which p of
    the P they belong to. The cache is left as it was: what is read is written behind its valid entries."""
    n, count, length = paths.shape
    size = max(1, BRANCHES // n)
    known, device = int(cache.lengths), paths.device
    for begin in range(0, count, size):
        some = paths[:, begin : begin + size]
        new, step = some.numel(), torch.arange(length, device=device)
        cache.make_room(new)
        slots, place = torch.arange(cache.size, device=device), at.repeat_interleave(some.shape[1] * length)
        own = torch.arange(new, device=device)
        first, slot = known + own // length * length, known + own  # of its continuation, and its own
        sees = (slots <= place[:, None]) | ((slots >= first[:, None]) & (slots <= slot[:, None]))
        index = place + 1 + step.repeat(new // length)
        out = lm.trunk_states(lm.embed(some.reshape(1, -1)), index[None], sees[None, None], cache)
        last = out.top[0, length - 1 :: length]
        yield (
            slice(begin, begin + some.shape[1]),
            lm.output.logits(last).float().softmax(-1).unflatten(0, some.shape[:2]),
        )


def ahead_report(
    lm: TextLM,
    documents: Iterable[Sequence[int]],
    length: int,
    k: int = 2,
    between: Between | None = None,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Loss and best guesses over ``documents`` of ids, of each the first ``length`` tokens.

    Raises ValueError where no document has more than ``k`` tokens, and as :func:`look_ahead`.
    """
    between, rows = between or Between(), []
    for number, ids in enumerate(documents, start=1):
        report(f"document {number}")
        if min(len(ids), length) > k:
            rows.append(_sums(lm, list(ids[:length]), k, between, number))
    if not rows:
        raise ValueError(f"There is no document of {k + 1} tokens among the first {length} of each; give more text.")
    sums = torch.tensor(rows, dtype=torch.float64)
    figures = {name: estimate(sums[:, [column, 3]], ratio) for column, name in enumerate(("loss", "right", "covered"))}
    settings = {"k": k, "top": between.top, "samples": between.samples, "length": length}
    return {**figures, "tokens": int(sums[:, 3].sum()), **settings, "definitions": DEFINITIONS}


def _sums(lm: TextLM, ids: list[int], k: int, between: Between, seed: int) -> tuple[float, float, float, float]:
    """Nats, right guesses, covered mass and number of the tokens of a document that have ``k`` before them."""
    nats = right = covered = 0.0
    targets = torch.tensor(ids[k:], device=lm.device)
    for ahead in look_ahead(lm, ids[:-k], k, between, seed):
        token = targets[ahead.at]
        nats -= float(ahead.log_probs.gather(1, token[:, None]).sum())
        right += float((ahead.log_probs.argmax(-1) == token).sum())
        covered += float(ahead.covered.sum())
    return nats, right, covered, float(len(targets))
