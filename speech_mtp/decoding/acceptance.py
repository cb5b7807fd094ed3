"""What is kept of a draft, as pure functions of tensors. Each says whether it is lossless.

A draft is a tree: ``tokens [B, M]``, ``parents [B, M]`` (node 0, the committed token, has -1, and so has a node that
only fills the row and is never kept; parents come before children). The functions return ``path [B, M]``, the kept
nodes from node 0 on (-1 past ``length [B]``, at least 1), and ``stop [B]``, the last kept node, after which the bonus
token is drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from speech_mtp.lm.cache import ancestors_of

Kept = tuple[Tensor, Tensor, Tensor]
"""``path [B, M], length [B], stop [B]``"""


def matching(tokens: Tensor, parents: Tensor, choice: Tensor) -> Kept:
    """Greedy, lossless: keep the longest path on which every token is the trunk's ``choice [B, M]`` at its parent.

    Blockwise parallel decoding (Stern et al. 2018), section 4. With several equal paths the first node wins.
    """
    wanted = choice.gather(1, parents.clamp(min=0))
    return longest(tokens == wanted, parents)


def longest(good: Tensor, parents: Tensor) -> Kept:
    """Keep the longest path from node 0 on which all nodes are ``good [B, M]`` (node 0 always is)."""
    ancestors = ancestors_of(parents)  # [B, M, M]
    root = torch.arange(parents.shape[1], device=parents.device) == 0
    good = (good & (parents >= 0)) | root
    alive = ~(ancestors & ~good[:, None]).any(-1)
    depth = ancestors.sum(-1)
    stop = torch.where(alive, depth, 0).argmax(1)
    return path_to(stop, ancestors)


def path_to(stop: Tensor, ancestors: Tensor) -> Kept:
    """The path from node 0 to the node ``stop [B]``; ``ancestors [B, M, M]`` of every node, itself included."""
    m = ancestors.shape[1]
    on_path = ancestors.gather(1, stop[:, None, None].expand(-1, 1, m))[:, 0]
    length = on_path.sum(1)
    # Nodes are numbered so that parents come first: the path in order is the set in order.
    order = torch.where(on_path, torch.arange(m, device=stop.device), m).sort(1).values
    return torch.where(order < m, order, -1), length, stop


def rejection_chain(tokens: Tensor, p: Tensor, q: Tensor | None, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Speculative sampling of a chain (Leviathan et al. 2023, theorem 3.5), lossless.

    ``tokens [B, K]`` drafted, ``p [B, K + 1, V]`` the trunk's law before each and after the last, ``q [B, K, V]`` the
    law each was really drawn from (None: deterministic), ``uniform [B, K]``. Token k is kept with probability
    ``min(1, p / q)``. Returns how many are kept ``[B]`` and the law ``[B, V]`` of the bonus token: the residual
    ``max(0, p - q)`` at the first rejection, ``p`` after the last token. Where rounding leaves nothing of the residual,
    p and q are equal, and ``p`` stands in its place.
    """
    k = tokens.shape[1]
    mine = p[:, :k].gather(2, tokens[..., None])[..., 0]
    drawn = torch.ones_like(mine) if q is None else q.gather(2, tokens[..., None])[..., 0]
    kept = (uniform * drawn < mine).long().cumprod(1).sum(1)
    at = kept[:, None, None].expand(-1, 1, p.shape[-1])
    law = p.gather(1, at)[:, 0]
    if k:
        refused = kept.clamp(max=k - 1)
        if q is None:
            taken = torch.zeros_like(law).scatter(1, tokens.gather(1, refused[:, None]), float("inf"))
        else:
            taken = q.gather(1, refused[:, None, None].expand(-1, 1, q.shape[-1]))[:, 0]
        rest = (law - taken).clamp(min=0)
        left = (rest > 0).any(1) & (kept < k)
        law = torch.where(left[:, None], rest, law)
    return kept, law / law.sum(1, keepdim=True)


def sibling_rejection(tokens: Tensor, parents: Tensor, p: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Sampling on a tree whose nodes were chosen deterministically, lossless (EAGLE, SpecInfer's multi-round rule).

    ``p [B, M, V]`` is the trunk's law after each node, ``uniform [B, M]``. Children of a kept node are tried in order:
    a child is kept with its probability under what is left of the law, and what is refused leaves it. Returns the
    last kept node ``[B]`` and the law ``[B, V]`` of the bonus token.
    """
    b, m = tokens.shape
    rows = torch.arange(b, device=tokens.device)
    stop = torch.zeros(b, dtype=torch.long, device=tokens.device)
    law = p[:, 0].clone()
    for i in range(1, m):
        here = parents[:, i] == stop
        token = tokens[:, i]
        chance = law[rows, token] / law.sum(1)
        keep = here & (uniform[:, i] < chance)
        refuse = here & ~keep
        law[rows, token] = torch.where(refuse, 0.0, law[rows, token])
        stop = torch.where(keep, i, stop)
        law = torch.where(keep[:, None], p[:, i], law)
    return stop, law / law.sum(1, keepdim=True)


def typical(tokens: Tensor, parents: Tensor, p: Tensor, threshold: float = 0.09, delta: float = 0.3) -> Kept:
    """Medusa's rule, **lossy**: keep x where ``p(x) > min(threshold, delta exp(-H(p)))``, p at its parent."""
    at = parents.clamp(min=0)
    mine = p.gather(1, at[..., None].expand(-1, -1, p.shape[-1])).gather(2, tokens[..., None])[..., 0]
    entropy = -(p * (p + 1e-5).log()).sum(-1).gather(1, at)
    return longest(mine > (delta * (-entropy).exp()).clamp(max=threshold), parents)


def among_top(tokens: Tensor, parents: Tensor, scores: Tensor, k: int) -> Kept:
    """Keep tokens among the trunk's ``k`` best at their parent, **lossy** (Stern et al. 2018, section 5.1)."""
    best = scores.topk(k, -1).indices.gather(1, parents.clamp(min=0)[..., None].expand(-1, -1, k))
    return longest((best == tokens[..., None]).any(-1), parents)
