"""Draft a chain, verify it in one forward, keep what is right: speculative decoding (Leviathan et al. 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from speech_mtp.decoding import acceptance
from speech_mtp.decoding.base import ACCEPT, DRAFT, TARGET, DecodingRule
from speech_mtp.decoding.laws import TextLaw
from speech_mtp.heads.base import MTPHead
from speech_mtp.lm.text_lm import TextState
from speech_mtp.types import Draft, LMOutput, Verdict


class Chain(DecodingRule):
    """``depth`` tokens by ``head`` (default: as many as it has offsets); lossless.

    When sampling, drafts are drawn from the head's own law (``stochastic``) or are its best guesses. Drafting stops
    early once every row's draft is right with a probability below ``confidence``, in the head's own opinion.
    """

    def __init__(
        self, head: MTPHead, depth: int | None = None, stochastic: bool = True, confidence: float = 0.0
    ) -> None:
        self.head, self.taps = head, head.taps
        self.depth = depth or head.num_depths
        if self.depth > head.num_depths and not head.recursive:
            raise ValueError(f"This head drafts {head.num_depths} tokens; depth {self.depth} is too much.")
        self.stochastic, self.confidence = stochastic, confidence

    @staticmethod
    def supports(head: type[MTPHead]) -> bool:
        """Adjacent offsets only: a leap needs the rule that looks back."""
        return getattr(head, "adjacent", True)

    def begin(self, state: TextState) -> None:
        state.head = self.head.open(len(state.last), state.last.device, state.cache.keys.dtype)

    def read(self, state: TextState, out: LMOutput, tokens: Tensor, following: Tensor, lengths: Tensor) -> None:
        self.head.read(state.head, out.hidden, tokens, following, lengths)

    def propose(self, state: TextState, law: TextLaw) -> Draft:
        tokens, laws = [state.last[:, 0]], []
        scores = self.head.root(state.head)
        sure = torch.ones(len(state.last), device=state.last.device)
        for d in range(self.depth):
            so_far = torch.stack(tokens, 1)
            adjusted = law.adjusted(state, full(self.head, scores)[:, None], so_far, chain_of(so_far))[:, 0]
            if self.stochastic and not law.greedy:
                laws.append(adjusted.softmax(-1))
                token = law.draw(state, d, adjusted, DRAFT)
            else:
                token = adjusted.argmax(-1)
            if self.confidence:
                sure = sure * adjusted.float().softmax(-1).gather(1, token[:, None])[:, 0]
                if bool((sure < self.confidence).all()):
                    laws = laws[:d]
                    break
            tokens.append(token)
            if d + 1 < self.depth:
                parents = torch.full_like(token, d - 1)
                scores = self.head.expand(state.head, token[:, None], parents[:, None])[:, 0]
        drafted = torch.stack(tokens, 1)
        q = [torch.stack(laws, 1)] if laws else None
        return Draft(drafted[..., None], chain_of(drafted), q)

    def accept(self, state: TextState, draft: Draft, out: LMOutput, law: TextLaw) -> Verdict:
        tokens = draft.tokens[..., 0]
        scores = law.adjusted(state, law.lm.output.logits(out.top), tokens, draft.parents)
        if law.greedy:
            choice = scores.argmax(-1)
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


def full(head: MTPHead, scores: Tensor) -> Tensor:
    """Scores on the draft vocabulary ``[..., num_tokens]`` -> on the trunk's ``[..., V]``, -inf elsewhere."""
    if head.token_map is None:
        return scores
    wide = scores.new_full((*scores.shape[:-1], head.shape.vocab_size), float("-inf"))
    return wide.scatter(-1, head.token_map.expand(*scores.shape[:-1], -1), scores)
