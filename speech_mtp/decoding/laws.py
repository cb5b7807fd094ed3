"""The laws of speech groups and of text: what is done to logits before a token is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from speech_mtp.decoding import sampling as noise
from speech_mtp.decoding.base import Law
from speech_mtp.lm.cache import ancestors_of
from speech_mtp.lm.decode import DecodeState

if TYPE_CHECKING:  # it imports ``transformers``, which takes a second
    from speech_mtp.lm.text_lm import TextState


class SpeechLaw(Law):
    """Layout masks on the control channel and the repetition guard on content codes, then the sampling settings."""

    def pick(self, state: DecodeState, depth: int, channel: int, logits: Tensor) -> Tensor:
        if channel == 0:
            mask = self.lm.layout.control_mask(state.pointer, state.units.lengths, state.units.complete, state.stalled)
            logits = logits.masked_fill(~mask, float("-inf"))
        elif (channel - 1) % len(self.lm.config.codebook_sizes) == 0:
            logits = noise.guard_repeats(logits, state.recent, self.sampling)
        adjusted = noise.adjust(logits, self.sampling)
        return noise.draw(adjusted, self.sampling, self.seeds, state.groups + depth, channel)


class TextLaw(Law):
    """Repetition penalty over the row's tokens and the node's own path, then temperature, top-k and top-p.

    Greedy keeps the penalised logits. The same lines serve draft, verification and residual, so all three agree.
    """

    def pick(self, state: TextState, depth: int, channel: int, logits: Tensor) -> Tensor:
        adjusted = self.adjusted(state, logits[:, None])[:, 0]
        return noise.draw(adjusted, self.sampling, self.seeds, state.lengths + depth, channel)

    def adjusted(
        self,
        state: TextState,
        logits: Tensor,
        tokens: Tensor | None = None,
        parents: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> Tensor:
        """Logits ``[B, M, V]`` of what follows a draft's newest M nodes -> the law's logits, -inf where excluded.

        ``tokens, parents`` ``[B, N]``, N at least M, are all nodes so far (node 0 is part of the row's history);
        without them the positions follow the history itself. ``ids [V]`` are the tokens that the logits are of, when a
        head drafts from some only: to leave the others out and to give them -inf is the same law.
        """
        if self.sampling.repetition_penalty != 1:
            logits = self._penalised(state, logits, tokens, parents, ids)
        return noise.adjust(logits, self.sampling)

    def _penalised(
        self, state: TextState, logits: Tensor, tokens: Tensor | None, parents: Tensor | None, ids: Tensor | None
    ) -> Tensor:
        b, m, v = logits.shape if ids is None else (*logits.shape[:2], self.lm.vocab_size)
        slots = torch.arange(state.tokens.shape[1], device=logits.device)
        # Entries past a row's length count as its first token, which is in the history anyway.
        history = torch.where(slots < state.lengths[:, None], state.tokens, state.tokens[:, :1])
        seen = torch.zeros(b, v, dtype=torch.bool, device=logits.device).scatter_(1, history, True)
        seen = seen[:, None].expand(-1, m, -1)
        if tokens is not None and parents is not None:
            on_path = torch.where(ancestors_of(parents)[:, -m:], tokens[:, None], tokens[:, :1, None])
            seen = seen.scatter(2, on_path, True)
        seen = seen if ids is None else seen[..., ids]
        logits, penalty = logits.float(), self.sampling.repetition_penalty
        return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)

    @property
    def greedy(self) -> bool:
        return self.sampling.temperature == 0

    def draw(self, state: TextState, depth: Tensor | int, logits: Tensor, purpose: int) -> Tensor:
        """One token per row from adjusted ``logits [B, V]``, ``depth`` positions after the history."""
        return noise.draw(logits, self.sampling, self.seeds, state.lengths + depth, 0, purpose)

    def uniform(self, state: TextState, depth: Tensor | int, purpose: int, count: int = 1) -> Tensor:
        """Numbers in (0, 1) ``[B, count]`` for the position ``depth`` after the history."""
        return noise.uniform(self.seeds, state.lengths + depth, 0, purpose, count)
