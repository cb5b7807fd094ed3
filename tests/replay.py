"""Greedy decoding checked by recomputation: one forward over all positions, no cache, no loop."""

from __future__ import annotations

import torch
from torch import Tensor

from speech_mtp.decoding import engine
from speech_mtp.lm.speech_lm import SpeechLM
from speech_mtp.types import Kind, Positions, Sampling, TextUnits


def greedy_tokens(lm: SpeechLM, units: TextUnits, timbre: Tensor, max_groups: int = 10_000) -> Tensor:
    """``[T, C]``: what the engine decodes step by step for one row at temperature 0, without repetition guard."""
    run = engine.start(lm, units, timbre, Sampling(temperature=0))
    tokens: list[Tensor] = []
    while len(tokens) < max_groups and run.advance() is not None:
        tokens.append(run.rows.last[0].clone())
    return torch.stack(tokens)


@torch.inference_mode()
def shortfall(lm: SpeechLM, units: TextUnits, timbre: Tensor, tokens: Tensor) -> Tensor:
    """``[T, C]``: by how much each token's logit lies below the largest allowed one of a teacher-forced forward."""
    t = len(tokens)
    fed = torch.cat([lm.layout.nothing(1), tokens[:-1]])[None]
    pointer = torch.zeros(t, dtype=torch.long)
    for i in range(1, t):
        pointer[i] = lm.layout.move(pointer[i - 1 : i], tokens[i - 1 : i, 0])[0]
    at = torch.arange(t)[None]
    positions = Positions(fed, torch.full((1, t), int(Kind.SPEECH)), at, torch.zeros_like(at), pointer[None])
    scores = lm.output.score(lm(positions, units, timbre).top, tokens[None])
    stalled = torch.zeros(t, dtype=torch.long)
    for i in range(1, t):
        stalled[i] = stalled[i - 1] + 1 if pointer[i] == pointer[i - 1] else 0
    rows = units.lengths.expand(t)
    mask = lm.layout.control_mask(pointer, rows, units.complete.expand(t), stalled)
    control = scores[0][0].masked_fill(~mask, float("-inf"))
    logits = [control, *(score[0] for score in scores[1:])]
    return torch.stack([row.amax(-1) - row.gather(-1, tokens[:, c : c + 1])[:, 0] for c, row in enumerate(logits)], -1)
