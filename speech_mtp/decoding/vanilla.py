"""Plain decoding: the draft of size one."""

from __future__ import annotations

from typing import Any

import torch

from speech_mtp.decoding.base import DecodingRule, Law
from speech_mtp.types import Draft, LMOutput, Verdict


class Vanilla(DecodingRule):
    """Drafts nothing but the committed position, keeps it, and samples the next one."""

    def propose(self, state: Any, law: Law) -> Draft:
        parents = torch.full((len(state.last), 1), -1, device=state.last.device)
        return Draft(state.last[:, None], parents)

    def accept(self, state: Any, draft: Draft, out: LMOutput, law: Law) -> Verdict:
        hidden = out.top[:, 0]
        tokens = law.lm.output.sample(hidden, lambda c, logits: law.pick(state, 0, c, logits))
        kept = torch.zeros_like(draft.parents)
        return Verdict(kept, torch.ones(len(hidden), dtype=torch.long, device=hidden.device), tokens)
