"""Draft a chain, verify it in one forward, keep what is right: speculative decoding (Leviathan et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from speech_mtp.decoding import acceptance
from speech_mtp.decoding import sampling as noise
from speech_mtp.decoding._drafting import Growth, HeadRule, plain
from speech_mtp.decoding.judge import ended
from speech_mtp.decoding.laws import Law, TextLaw
from speech_mtp.decoding.payoff import Payoff
from speech_mtp.decoding.sampling import ACCEPT, DRAFT
from speech_mtp.heads.base import MTPHead
from speech_mtp.types import Draft, LMOutput, Verdict


class Chain(HeadRule):
    """``depth`` positions by ``head`` (default: as many as it has offsets); lossless with exact acceptance.

    Drafts are the head's best guesses by its logits and the noise that the trunk will draw with. Drafting stops early
    once every row's chain is right with a probability below ``confidence``, in the head's own opinion. ``acceptance``
    and ``payoff`` are those of every rule with a head.

    ``rejection`` draws text drafts from the head's own distribution instead and accepts them by rejection sampling
    (Leviathan et al. 2023): text is then the trunk's in distribution, not token by token for a seed.
    """

    def __init__(
        self,
        head: MTPHead,
        depth: int | None = None,
        confidence: float = 0.0,
        rejection: bool = False,
        acceptance: str | Mapping[str, Any] = "exact",
        payoff: Payoff | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(head, acceptance, payoff)
        self.depth = self.check_depth(depth or self.reach(head))
        self.confidence, self.rejection = confidence, rejection
        if rejection and not self.acceptance.lossless:
            raise ValueError("Rejection sampling is an exact acceptance; leave rejection or acceptance out.")
        self.text_only = rejection or head.needs_tokens

    def guessed(self, growth: Growth) -> tuple[Tensor, int]:
        """The head's states ``[B, 1, D]`` that the next draft is guessed from, and its output layer for them."""
        return growth.states(), growth.depth

    def propose(self, rows: Any, law: Law) -> Draft:
        if self.rests():
            return plain(rows)
        drawn = self.rejection and rows.sampling.sampled
        growth = Growth(self.head, rows, law)
        laws: list[Tensor] = []
        sure = torch.ones(len(rows.last), device=rows.last.device)
        for d in range(self.depth):
            states, layer = self.guessed(growth)
            if drawn and isinstance(law, TextLaw):
                logits = self._law(growth, law, states, layer)
                token, best = _draw(rows, logits, d)[:, None, None], logits.softmax(-1).amax(-1)
            else:
                found = growth.guesses(states, 1, layer)
                token, best = found.tokens[:, :, 0], found.chance[:, 0, 0].exp()
            if self.confidence:
                # Judged before the token is drawn: to drop some tokens after seeing them would bend the law.
                sure = sure * self._chance(growth, states, layer, best)
                if bool((sure < self.confidence).all()):
                    break
            if drawn:
                laws.append(logits.softmax(-1))
            growth.add(token, torch.full_like(growth.draft.parents[:, :1], d - 1))
        draft = growth.draft
        draft.q = torch.stack(laws, 1) if laws else None
        return draft

    def _chance(self, growth: Growth, states: Tensor, layer: int, best: Tensor) -> Tensor:
        """How likely ``[B]`` the next draft is kept: the head's estimate, or its best guess's probability."""
        estimate = self.head.confidence(states, layer, growth.draft.tokens[:, -1:, 0])
        return best if estimate is None else estimate[:, 0]

    def _law(self, growth: Growth, law: TextLaw, states: Tensor, layer: int) -> Tensor:
        """The head's own distribution after the newest node, as logits ``[B, V]`` on the trunk's vocabulary."""
        scores = law.draft_scores(growth.rows, growth.draft, self.head, states, layer)
        adjusted = noise.sure(noise.adjust(scores, growth.rows.sampling), growth.rows.sampling)[:, 0].float()
        if self.head.token_map is None:
            return adjusted
        wide = adjusted.new_full((len(adjusted), law.lm.vocab_size), float("-inf"))
        return wide.scatter(-1, self.head.token_map.expand(len(wide), -1), adjusted)

    def accept(self, rows: Any, draft: Draft, out: LMOutput, law: Law) -> Verdict:
        if draft.q is None or not isinstance(law, TextLaw):
            return super().accept(rows, draft, out, law)
        tokens, k = draft.tokens[..., 0], draft.tokens.shape[1] - 1
        steps = rows.place.position[:, None] + torch.arange(k, device=tokens.device)
        chance = noise.uniform(rows.sampling.seed[:, None], steps, 0, ACCEPT, torch.zeros_like(steps[:1, :1]))[..., 0]
        p = noise.sure(law.scores(rows, draft, out), rows.sampling).float().softmax(-1)
        kept, rest = acceptance.rejection_chain(tokens[:, 1:], p, draft.q, chance)
        every = torch.arange(rest.shape[-1], device=rest.device)
        after = noise.best(noise.perturbed(rest.log(), rows.sampling, rows.place.position + kept, 0, every))
        nodes = torch.arange(k + 1, device=kept.device).expand(len(kept), -1)
        path = torch.where(nodes <= kept[:, None], nodes, -1)
        return acceptance.until_ended(draft, path, kept + 1, after[:, None], ended(rows, draft, law))


def _draw(rows: Any, logits: Tensor, depth: int) -> Tensor:
    """One draft ``[B]`` from logits ``[B, V]``, with noise of its own."""
    every = torch.arange(logits.shape[-1], device=logits.device)
    position = rows.place.position + depth
    return noise.best(logits + noise.gumbel(rows.sampling.seed, position, 0, every, DRAFT))
