"""Positions that are inserted among those of a text: every token is followed by so many others, which no token sees.

With two a token, of a text a b c::

    place      0  1  2  3  4  5  6  7  8
    holds      a  a1 a2 b  b1 b2 c  c1 c2       stream 0: the text; streams 1 and 2: what is inserted
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from speech_mtp.lm.causal_lm import CausalLM
from speech_mtp.nn.visibility import Rule
from speech_mtp.objectives._losses import mean_cross_entropy
from speech_mtp.objectives.base import Inputs, Scoring
from speech_mtp.types import Kind, LMOutput, Positions


def with_inserted(lm: CausalLM, positions: Positions, vectors: Tensor, index: Tensor, labels: Tensor) -> Inputs:
    """``positions [B, T]`` of a text with S behind each: their input ``vectors [S, D]``, the rotary positions ``index``
    and the ``labels``, ``[B, T, S]``. There is no rule yet."""
    assert positions.labels is not None, "training positions carry labels"
    x = lm.embed(positions.tokens[..., 0])[:, :, None]
    extra = len(vectors)
    kind = torch.where(positions.kind == Kind.PAD, Kind.PAD, Kind.REGISTER)[..., None].expand(-1, -1, extra)
    joined = replace(
        positions,
        tokens=positions.tokens.repeat_interleave(1 + extra, 1),
        kind=torch.cat([positions.kind[..., None], kind], 2).flatten(1),
        index=torch.cat([positions.index[..., None], index], 2).flatten(1),
        segment=positions.segment.repeat_interleave(1 + extra, 1),
        labels=torch.cat([positions.labels, labels], 2).flatten(1)[..., None],
    )
    inserted = vectors.to(x.dtype).expand(*x.shape[:2], -1, -1)
    return Inputs(joined, vectors=torch.cat([x, inserted], 2).flatten(1, 2))


def text_alone(segment: Tensor, extra: int, lag: int) -> Rule:
    """Nobody sees an inserted position but itself. A token sees itself and the tokens before it in its segment; stream
    s behind the token at t those at t - s ``lag`` and before. ``segment [B, T (1 + extra)]``."""
    width = 1 + extra

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        far_enough = key // width <= query // width - lag * (query % width)
        text = (key % width == 0) & far_enough & (segment[row, query] == segment[row, key])
        return text | (key == query)

    return sees


def stream(out: LMOutput, positions: Positions, number: int, extra: int) -> tuple[LMOutput, Positions]:
    """The states and the positions of one stream, ``[B, T]``."""
    width = 1 + extra
    fields = {name: value[:, number::width] for name, value in vars(positions).items() if value is not None}
    return LMOutput(out.hidden[:, number::width]), replace(positions, **fields)


def scored(lm: Scoring, out: LMOutput, labels: Tensor) -> Tensor:
    """The loss of a stream's states against its ``labels [B, T]``."""
    (scores,) = lm.output.score(out.top, labels[..., None])
    return mean_cross_entropy(scores, labels)


def small_vectors(lm: CausalLM, count: int) -> torch.nn.Parameter:
    """``[count, D]`` to be learnt, random, as large as the trunk's embeddings."""
    spread = lm.model.embed_tokens.weight.detach().std()
    return torch.nn.Parameter(torch.randn(count, lm.dim, device=lm.device) * spread)
