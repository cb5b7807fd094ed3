"""The direct form's loss: the backbone goes on predicting its text while it learns to predict groups."""

from __future__ import annotations

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from speech_mtp.layouts.base import IGNORE
from speech_mtp.lm.causal_lm import CausalLM
from speech_mtp.lm.direct import DirectLM, DirectOutput
from speech_mtp.lm.group_lm import GroupLM
from speech_mtp.objectives.base import Course, Scoring
from speech_mtp.objectives.ntp import NTP
from speech_mtp.types import LMOutput, Positions

NO_TEXT = "The objective 'direct' has a text term, which only the direct form gives; use 'ntp'."


class Direct(NTP):
    """Term ``text``: mean CE in nats per token of the text before speech; then the terms of :class:`NTP`."""

    def bind(self, lm: CausalLM, course: Course) -> None:
        raise ValueError(NO_TEXT)

    def bind_speech(self, lm: GroupLM, course: Course) -> None:
        if not isinstance(lm, DirectLM):
            raise ValueError(NO_TEXT)

    def terms(self, lm: Scoring, out: LMOutput, positions: Positions) -> Iterator[tuple[str, Tensor]]:
        if not isinstance(lm, DirectLM) or not isinstance(out, DirectOutput):
            raise ValueError(NO_TEXT)
        scores = lm.text_logits(out.text).float().flatten(0, 1)
        # A row of one token has nothing to predict: a sum over no label is zero, a mean would be undefined.
        count = (out.next_text != IGNORE).sum().clamp(min=1)
        yield "text", F.cross_entropy(scores, out.next_text.flatten(), ignore_index=IGNORE, reduction="sum") / count
        yield from super().terms(lm, out, positions)


def paper_weights(lm: GroupLM, text: float = 0.2) -> dict[str, float]:
    """Weights that make the total ``text`` CE_text + (1 - ``text``) mean over channels CE_c (SLM-Decoupled-MTP)."""
    channels, per_stream = lm.layout.num_channels, lm.layout.frames_per_group
    streams = {f"stream{k}": (1 - text) * per_stream / channels for k in range(len(lm.layout.codebook_sizes))}
    return {"text": text, "control": (1 - text) / channels, **streams}
