"""How well a language model predicts held-out documents: nats a token and bits a byte, with intervals.

Bits a byte compare models of different tokenizers: the information of a document's tokens and of its end, divided by
the bytes of its text. A document longer than the window is read in windows that overlap by half, and each token is
scored once, in the first window that holds it. So what follows the first window is predicted from half a window at
least.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from speech_mtp.evaluation.intervals import estimate, ratio
from speech_mtp.lm.text_lm import TextLM

DEFINITIONS = {
    "loss": "nats a token, over all tokens of the documents and their ends",
    "bits_per_byte": "the same nats as bits, over the bytes of the text in UTF-8",
    "interval": "holds 95 % of 1,000 bootstrap samples of the documents",
}
FIDELITY = {
    "same_choice": "share of tokens at whose place both find the same token likeliest",
    "kl": "divergence of the model from the exact one, nats a token",
    "perplexity_ratio": "perplexity of the model over that of the exact one",
    "interval": "holds 95 % of 1,000 bootstrap samples of the documents",
}
BATCH = 8


def text_loss(
    lm: TextLM,
    documents: Iterable[tuple[int, Sequence[int]]],
    length: int,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """``documents`` are pairs of (bytes, ids with start and end); ``length`` of the windows, in tokens.

    Raises ValueError where there is no document, and for windows that the model cannot read.
    """
    if not 2 <= length <= lm.max_positions:
        raise ValueError(f"The length is {length} tokens; the model reads 2 to {lm.max_positions}.")
    rows = []
    for number, (size, ids) in enumerate(documents, start=1):
        report(f"document {number}, {size} bytes")
        rows.append((document_nats(lm, ids, length), float(len(ids) - 1), float(size)))
    if not rows:
        raise ValueError("There is no held-out document to measure on; give more text, or hold more of it out.")
    sums = torch.tensor(rows, dtype=torch.float64)
    return {
        "loss": estimate(sums[:, :2], ratio),
        "bits_per_byte": estimate(sums[:, ::2] / torch.tensor([math.log(2), 1.0], dtype=torch.float64), ratio),
        "documents": len(rows),
        "tokens": int(sums[:, 1].sum()),
        "bytes": int(sums[:, 2].sum()),
        "length": length,
        "definitions": DEFINITIONS,
    }


@torch.inference_mode()
def document_nats(lm: TextLM, ids: Sequence[int], length: int) -> float:
    """The information of all tokens of a document but the first."""
    return sum(float(F.cross_entropy(scores, tokens, reduction="sum")) for scores, tokens in scored(lm, ids, length))


def scored(lm: TextLM, ids: Sequence[int], length: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits ``[N, V]`` of the tokens of a document but the first, and the tokens ``[N]``, window by window."""
    for batch in _batches(windows(len(ids), length)):
        rows = [torch.tensor(ids[begin:end], device=lm.device) for begin, _, end in batch]
        tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        out = lm(tokens, torch.tensor([len(row) for row in rows], device=lm.device))
        for row, states, (begin, fresh, end) in zip(rows, out.top, batch, strict=True):
            # What state t says is scored at the token t + 1.
            scores: Tensor = lm.output.logits(states[fresh - begin - 1 : end - begin - 1]).float()
            yield scores, row[fresh - begin :]


def fidelity(
    lm: TextLM,
    exact: TextLM,
    documents: Iterable[Sequence[int]],
    length: int,
    report: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """How near ``lm`` is to ``exact``, the same model in another precision, on documents (ids with start and end).

    Raises ValueError where their vocabularies differ."""
    if lm.vocab_size != exact.vocab_size:
        raise ValueError(
            f"The models have {lm.vocab_size} and {exact.vocab_size} tokens; compare two precisions of one model."
        )
    rows = []
    for number, ids in enumerate(documents, start=1):
        report(f"document {number}")
        rows.append(_compared(lm, exact, ids, length))
    sums = torch.stack(rows)
    return {
        "same_choice": estimate(sums[:, :2], ratio),
        "kl": estimate(sums[:, [2, 1]], ratio),
        "perplexity_ratio": estimate(sums[:, [3, 1]], lambda totals: ratio(totals).exp()),
        "definitions": FIDELITY,
    }


@torch.inference_mode()
def _compared(lm: TextLM, exact: TextLM, ids: Sequence[int], length: int) -> Tensor:
    """Of one document: equal choices, tokens, divergence, and how much dearer its tokens are ``[4]``."""
    found = torch.zeros(4, dtype=torch.float64)
    for (scores, tokens), (true, _) in zip(scored(lm, ids, length), scored(exact, ids, length), strict=True):
        ours, theirs = scores.log_softmax(-1), true.log_softmax(-1)
        dearer = F.nll_loss(ours, tokens, reduction="sum") - F.nll_loss(theirs, tokens, reduction="sum")
        same, apart = (ours.argmax(-1) == theirs.argmax(-1)).sum(), (theirs.exp() * (theirs - ours)).sum()
        found += torch.tensor([float(same), len(tokens), float(apart), float(dearer)], dtype=torch.float64)
    return found


def windows(count: int, length: int) -> list[tuple[int, int, int]]:
    """Windows of a document of ``count`` tokens: (begin, the first token that is scored, end)."""
    found, fresh, begin = [], 1, 0
    while fresh < count:
        end = min(begin + length, count)
        found.append((begin, fresh, end))
        fresh, begin = end, begin + max(1, length // 2)
    return found


def _batches(found: list[tuple[int, int, int]]) -> Iterator[list[tuple[int, int, int]]]:
    for at in range(0, len(found), BATCH):
        yield found[at : at + BATCH]
