"""Judging a draft whose tokens were chosen, not drawn: what rules share between the trunk's scores and a verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speech_mtp.decoding import acceptance
from speech_mtp.decoding import sampling as noise
from speech_mtp.decoding.base import ACCEPT, TARGET
from speech_mtp.decoding.laws import TextLaw
from speech_mtp.lm.cache import ancestors_of
from speech_mtp.lm.text_lm import TextState
from speech_mtp.types import Draft, LMOutput, Verdict

KINDS = ("exact", "typical", "top_k")


@dataclass(frozen=True)
class Acceptance:
    """``exact`` keeps the trunk's law and is the only lossless ``kind``. ``typical`` is Medusa's rule with its
    ``threshold`` and ``delta``, exact when greedy; ``top_k`` keeps whatever is among the trunk's ``k`` best."""

    kind: str = "exact"
    threshold: float = 0.09
    delta: float = 0.3
    k: int = 3

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"acceptance is {self.kind!r}; it must be one of {', '.join(KINDS)}.")
        if self.k < 1:
            raise ValueError(f"k is {self.k}; acceptance by rank needs at least one.")

    @classmethod
    def of(cls, given: str | Mapping[str, Any]) -> Acceptance:
        """From a recipe: the kind alone, or a mapping of the fields."""
        return cls(given) if isinstance(given, str) else cls(**given)

    @property
    def lossless(self) -> bool:
        return self.kind == "exact"


def judge(how: Acceptance, state: TextState, draft: Draft, out: LMOutput, law: TextLaw) -> Verdict:
    """The verdict on a tree; with ``exact`` its nodes must have been chosen deterministically."""
    tokens, parents = draft.tokens[..., 0], draft.parents
    scores = law.adjusted(state, law.lm.output.logits(out.top), tokens, parents)
    if law.greedy:
        choice = noise.best(scores)
        if how.kind == "top_k":
            path, length, stop = acceptance.among_top(tokens, parents, scores, min(how.k, scores.shape[-1]))
        else:
            path, length, stop = acceptance.matching(tokens, parents, choice)
        return Verdict(path, length, choice.gather(1, stop[:, None]))
    p = scores.softmax(-1)
    if how.kind == "exact":
        ancestors = ancestors_of(parents)
        chance = chances(state, law, ancestors.sum(-1) - 1)
        stop, rest = acceptance.sibling_rejection(tokens, parents, p, chance)
        path, length, stop = acceptance.path_to(stop, ancestors)
    else:
        if how.kind == "typical":
            path, length, stop = acceptance.typical(tokens, parents, p, how.threshold, how.delta)
        else:
            path, length, stop = acceptance.among_top(tokens, parents, scores, min(how.k, scores.shape[-1]))
        rest = p[torch.arange(len(p), device=p.device), stop]
    return Verdict(path, length, law.draw(state, length - 1, rest.log(), TARGET)[:, None])


def chances(state: TextState, law: TextLaw, depth: Tensor) -> Tensor:
    """One number in (0, 1) per node ``[B, M]``, for the position that a node of ``depth [B, M]`` would take.

    A position is decided in one step only, so its numbers are used once; nodes differ by their place in the draft.
    """
    b, m = depth.shape
    position = (state.lengths[:, None] + depth - 1).flatten()
    every = noise.uniform(law.seeds.repeat_interleave(m), position, 0, ACCEPT, m)
    return every.view(b, m, m).diagonal(dim1=1, dim2=2)
