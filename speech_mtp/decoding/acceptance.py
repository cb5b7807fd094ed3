"""What is kept of a draft, as functions of tensors. Each says whether it is lossless.

A draft is a tree: ``tokens [B, M, C]``, ``parents [B, M]`` (node 0, the committed position, has -1, and so has a node
that only fills the row and is never kept; parents come before children).
"""

from __future__ import annotations

import torch
from torch import Tensor

from speech_mtp.decoding.laws import Choose
from speech_mtp.types import Draft, Verdict


def matching(draft: Draft, choose: Choose, ended: Tensor) -> Verdict:
    """Keep a draft while it guessed the trunk's own draws in every channel, lossless whatever drafted it.

    From node 0 on: the trunk draws, with the noise of that position; a child that equals the draw is the next node. The
    draw after the last kept node is the sure position. Nothing follows a node that is ``ended [B, M]``: it becomes the
    sure position itself. So the same seed gives the same tokens as plain decoding. Greedy, this is blockwise parallel
    decoding (Stern et al. 2018), section 4. ::

        node 0 --draw a--> child a: go on --draw b--> no child b: b is the sure position
    """
    tokens, parents = draft.tokens, draft.parents
    rows = len(parents)
    on_cpu = parents.device.type == "cpu"
    node = torch.zeros(rows, dtype=torch.long, device=parents.device)
    going = torch.ones(rows, dtype=torch.bool, device=parents.device)
    path = torch.full_like(parents, -1)
    path[:, 0] = 0
    tried, kept = torch.zeros_like(node), torch.zeros_like(node)
    length, sure = torch.ones_like(node), choose(node, 0)
    for depth in range(draft.most):
        children = parents == node[:, None]
        right = children & (tokens == sure[:, None]).all(-1) & going[:, None]
        found, child = right.any(1), right.long().argmax(1)
        tried, kept = tried + (children.any(1) & going), kept + found
        going = found & ~ended.gather(1, child[:, None])[:, 0]
        if on_cpu and not bool(going.any()):
            break
        node = torch.where(going, child, node)
        path[:, depth + 1] = torch.where(going, child, -1)
        length = length + going
        sure = torch.where(going[:, None], choose(node, depth + 1), sure)
    return Verdict(path, length, sure, tried, kept)


def longest(good: Tensor, draft: Draft) -> Tensor:
    """The last node ``[B]`` of the longest path from node 0 on of which all nodes are ``good [B, M]`` (node 0 is)."""
    root = torch.arange(good.shape[1], device=good.device) == 0
    good = (good & (draft.parents >= 0)) | root
    alive = ~(draft.ancestors & ~good[:, None]).any(-1)
    return torch.where(alive, draft.depths + 1, 0).argmax(1)


def path_to(stop: Tensor, draft: Draft) -> tuple[Tensor, Tensor]:
    """The path ``[B, M]`` from node 0 to the node ``stop [B]``, -1 past its length ``[B]``."""
    m = draft.parents.shape[1]
    on_path = draft.ancestors.gather(1, stop[:, None, None].expand(-1, 1, m))[:, 0]
    # Nodes are numbered so that parents come first: the path in order is the set in order.
    order = torch.where(on_path, torch.arange(m, device=stop.device), m).sort(1).values
    return torch.where(order < m, order, -1), on_path.sum(1)


def until_ended(draft: Draft, path: Tensor, length: Tensor, after: Tensor, ended: Tensor) -> Verdict:
    """The verdict that keeps ``path [B, M]`` of ``length [B]`` with ``after [B, C]`` behind it, but nothing after a
    node that is ``ended [B, M]``: the first such node is the sure position."""
    at = torch.arange(path.shape[1], device=path.device)
    over = ended.gather(1, path.clamp(min=0)) & (at < length[:, None]) & (at > 0)
    cut = over.any(1)
    kept = torch.where(cut, over.long().argmax(1), length)
    last = path.gather(1, kept.clamp(max=path.shape[1] - 1)[:, None]).clamp(min=0)
    node = draft.tokens.gather(1, last[..., None].expand(-1, -1, draft.tokens.shape[-1]))[:, 0]
    more = (draft.parents == path.gather(1, (length - 1)[:, None])).any(1) & ~cut
    found = kept - 1 + cut.long()
    sure = torch.where(cut[:, None], node, after)
    return Verdict(torch.where(at < kept[:, None], path, -1), kept, sure, found + more.long(), found)


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


def typical(draft: Draft, p: Tensor, threshold: float = 0.09, delta: float = 0.3) -> Tensor:
    """Medusa's rule, **lossy**: keep x where ``p(x) > min(threshold, delta exp(-H(p)))``, ``p [B, M, V]`` at its
    parent. The last kept node ``[B]``."""
    at = draft.parents.clamp(min=0)
    mine = p.gather(1, at[..., None].expand(-1, -1, p.shape[-1])).gather(2, draft.tokens[..., :1])[..., 0]
    entropy = -(p * (p + 1e-5).log()).sum(-1).gather(1, at)
    return longest(mine > (delta * (-entropy).exp()).clamp(max=threshold), draft)


def among_top(draft: Draft, scores: Tensor, k: int) -> Tensor:
    """Keep tokens among the trunk's ``k`` best at their parent, **lossy** (Stern et al. 2018, section 5.1). The last
    kept node ``[B]``."""
    best = scores.topk(k, -1).indices.gather(1, draft.parents.clamp(min=0)[..., None].expand(-1, -1, k))
    return longest((best == draft.tokens[..., :1]).any(-1), draft)
