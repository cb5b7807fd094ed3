"""Draft a chain, verify it in one forward, keep what is right: speculative decoding (Leviathan et al. 2023)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from speech_mtp.decoding import acceptance
from speech_mtp.decoding import sampling as noise
from speech_mtp.decoding._drafting import HeadRule, full, plain
from speech_mtp.decoding.base import ACCEPT, DRAFT, TARGET
from speech_mtp.decoding.judge import judge
from speech_mtp.decoding.laws import TextLaw
from speech_mtp.decoding.payoff import Payoff
from speech_mtp.heads.base import MTPHead
from speech_mtp.lm.text_lm import TextState
from speech_mtp.types import Draft, LMOutput, Verdict


class Chain(HeadRule):
    """``depth`` tokens by ``head`` (default: as many as it has offsets); lossless with exact acceptance.

    When sampling, drafts are drawn from the head's own law (``stochastic``) or are its best guesses. Drafting stops
    early once every row's chain is right with a probability below ``confidence``, in the head's own opinion.
    ``acceptance`` and ``payoff`` are those of every rule with a head.
    """

    def __init__(
        self,
        head: MTPHead,
        depth: int | None = None,
        stochastic: bool = True,
        confidence: float = 0.0,
        acceptance: str | Mapping[str, Any] = "exact",
        payoff: Payoff | Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(head, acceptance, payoff)
        self.depth = self.check_depth(depth or self.reach(head))
        self.stochastic, self.confidence = stochastic, confidence

    def ahead(self, state: TextState, depth: int, token: Tensor) -> tuple[int, Tensor]:
        """The head's states ``[B, D]`` of draft ``depth`` (from 0), after ``token [B]``, and whose depth they are."""
        if depth == 0:
            return 0, self.head.root(state.head)
        parents = torch.full_like(token, depth - 2)
        return depth, self.head.expand(state.head, self.head.embed(token)[:, None], parents[:, None])[:, 0]

    def propose(self, state: TextState, law: TextLaw) -> Draft:
        if self.rests():
            return plain(state)
        tokens, laws = [state.last[:, 0]], []
        sure = torch.ones(len(state.last), device=state.last.device)
        for d in range(self.depth):
            so_far, (j, states) = torch.stack(tokens, 1), self.ahead(state, d, tokens[-1])
            scores = self.head.scores(states, j, tokens[-1])
            ids = self.head.token_map
            adjusted = law.adjusted(state, scores[:, None], so_far, chain_of(so_far), ids)[:, 0]
            if self.confidence:
                # Judged before the token is drawn: to drop some tokens after seeing them would bend the law.
                sure = sure * self._chance(self.head.confidence(states[:, None], j, so_far[:, -1:]), adjusted)
                if bool((sure < self.confidence).all()):
                    break
            if self.stochastic and not law.greedy:
                wide = full(self.head, adjusted)
                laws.append(wide.softmax(-1))
                token = law.draw(state, d, wide, DRAFT)
            else:
                token = self.head.to_target(noise.best(adjusted))
            tokens.append(token)
        drafted = torch.stack(tokens, 1)
        q = [torch.stack(laws, 1)] if laws else None
        return Draft(drafted[..., None], chain_of(drafted), q)

    @staticmethod
    def _chance(estimate: Tensor | None, adjusted: Tensor) -> Tensor:
        """How likely ``[B]`` the next draft is kept: the head's estimate, or its best token's probability."""
        return adjusted.float().softmax(-1).amax(-1) if estimate is None else estimate[:, 0]

    def accept(self, state: TextState, draft: Draft, out: LMOutput, law: TextLaw) -> Verdict:
        if not self.lossless:
            return judge(self.acceptance, state, draft, out, law)
        tokens = draft.tokens[..., 0]
        scores = law.adjusted(state, law.lm.output.logits(out.top), tokens, draft.parents)
        if law.greedy:
            choice = noise.best(scores)
            path, length, stop = acceptance.matching(tokens, draft.parents, choice)
            return Verdict(path, length, choice.gather(1, stop[:, None]))
        k = tokens.shape[1] - 1
        chance = torch.stack([law.uniform(state, d, ACCEPT)[:, 0] for d in range(k)] or [tokens[:, 0].float()], 1)
        q = None if draft.q is None else draft.q[0]
        kept, rest = acceptance.rejection_chain(tokens[:, 1:], scores.softmax(-1), q, chance[:, :k])
        bonus = law.draw(state, kept, rest.log(), TARGET)
        nodes = torch.arange(k + 1, device=kept.device).expand(len(kept), -1)
        return Verdict(torch.where(nodes <= kept[:, None], nodes, -1), kept + 1, bonus[:, None])


def chain_of(tokens: Tensor) -> Tensor:
    """The parents of a chain of ``tokens [B, M]``."""
    return torch.arange(-1, tokens.shape[1] - 1, device=tokens.device).expand(len(tokens), -1)
