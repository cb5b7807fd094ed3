"""Which acceptance a rule uses: the lossless one, or a lossy one by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from speech_mtp.decoding import acceptance
from speech_mtp.decoding.laws import Law, TextLaw
from speech_mtp.decoding.sampling import sure
from speech_mtp.types import Draft, LMOutput, Status, Verdict

KINDS = ("exact", "typical", "top_k")


@dataclass(frozen=True)
class Acceptance:
    """``exact`` keeps what the trunk itself draws and is the only lossless ``kind``. ``typical`` is Medusa's rule with
    its ``threshold`` and ``delta``, exact when greedy; ``top_k`` keeps whatever is among the trunk's ``k`` best. The
    lossy ones are for text."""

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

    def verdict(self, rows: Any, draft: Draft, out: LMOutput, law: Law) -> Verdict:
        """What is kept of ``draft``."""
        choose, over = law.chooser(rows, draft, out), ended(rows, draft, law)
        if self.lossless or (self.kind == "typical" and not rows.sampling.sampled):
            return acceptance.matching(draft, choose, over)
        assert isinstance(law, TextLaw), "a rule refuses lossy speech when it begins"
        scores = law.scores(rows, draft, out)
        if self.kind == "typical":
            p = sure(scores, rows.sampling).softmax(-1)
            stop = acceptance.typical(draft, p, self.threshold, self.delta)
        else:
            stop = acceptance.among_top(draft, scores, min(self.k, scores.shape[-1]))
        path, length = acceptance.path_to(stop, draft)
        return acceptance.until_ended(draft, path, length, choose(stop, length - 1), over)


def ended(rows: Any, draft: Draft, law: Law) -> Tensor:
    """The nodes ``[B, M]`` behind which nothing may follow. Of a draft of one node none is drafted behind it: there the
    answer is no."""
    if draft.parents.shape[1] == 1:
        return torch.zeros_like(draft.parents, dtype=torch.bool)
    return law.status(rows, law.lm.placed(rows, draft).place) != int(Status.GOING)
