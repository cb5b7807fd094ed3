"""A rule that claims to be lossless and is not: it keeps every draft."""

from __future__ import annotations

import torch

from speech_mtp.decoding.acceptance import until_ended
from speech_mtp.decoding.chain import Chain
from speech_mtp.decoding.judge import ended
from speech_mtp.decoding.laws import TextLaw
from speech_mtp.lm.text_lm import TextRows
from speech_mtp.types import Draft, LMOutput, Verdict


class AcceptAll(Chain):
    def accept(self, rows: TextRows, draft: Draft, out: LMOutput, law: TextLaw) -> Verdict:
        b, m = draft.tokens.shape[:2]
        best = law.lm.output.logits(out.top)[:, -1].argmax(-1)
        path, length = torch.arange(m).expand(b, -1), torch.full((b,), m)
        return until_ended(draft, path, length, best[:, None], ended(rows, draft, law))
