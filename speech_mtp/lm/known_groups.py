"""An output layer whose groups exist: all channels in parallel, and only groups that were seen in a corpus.

Parallel channels are cheap but know nothing of each other, so that they give groups that nobody ever spoke. RPG (Hou et
al. 2025, facebookresearch/RPG_KDD2025) has the same trouble with the digits of an item's id, and its answer: a digit is
the cosine between the state and the digit's codes over a temperature, after a residual block that begins as the
identity, and the best sum of log probabilities is looked for among the ids that exist
(:mod:`speech_mtp.nn.code_graph`).

Here groups are *drawn*, among the best that the search found (:class:`~speech_mtp.nn.code_graph.Search` says how many):
these have the chances ``p(group) ~ exp(sum of log p_c)``. Channels are drawn one after another from their conditionals,
so that masks, guards and settings of sampling mean what they mean elsewhere. The control channel is no part of the id.

Long groups hardly ever come twice in a corpus, so that what is known of them is a sample; groups of one or two frames
are where this output belongs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp.lm.output import OutputLayer, Pick
from speech_mtp.nn.code_graph import Search, best_items, neighbours

TEMPERATURE = 0.07
"""Of the cosines, as in RPG's code."""


class Cosine(OutputLayer):
    """Every channel by itself: ``cos(f_c(state), code) / temperature`` with ``f_c(x) = x + SiLU(W_c x)``, W_c zero at
    first."""

    def __init__(self, dim: int, channel_sizes: tuple[int, ...]) -> None:
        super().__init__(channel_sizes)
        self.blocks = nn.ModuleList(nn.Linear(dim, dim) for _ in channel_sizes)
        self.codes = nn.ModuleList(nn.Embedding(size, dim) for size in channel_sizes)
        for block in self.blocks:
            nn.init.zeros_(block.weight)  # type: ignore[arg-type]
            nn.init.zeros_(block.bias)  # type: ignore[arg-type]

    def _logits(self, c: int, hidden: Tensor) -> Tensor:
        place = F.normalize(hidden + F.silu(self.blocks[c](hidden)), dim=-1)
        return place @ F.normalize(self.vectors(c), dim=-1).T / TEMPERATURE

    def vectors(self, c: int) -> Tensor:
        """The codes of channel ``c``, ``[V_c, D]``."""
        weight: Tensor = self.codes[c].weight  # type: ignore[assignment]
        return weight

    def score(self, hidden: Tensor, tokens: Tensor) -> list[Tensor]:
        return [self._logits(c, hidden) for c in range(len(self.channel_sizes))]

    def sample(self, hidden: Tensor, pick: Pick) -> Tensor:
        return torch.stack([pick(c, logits) for c, logits in enumerate(self.score(hidden, hidden))], -1)


class Known(Cosine):
    """``ids [N, C - 1]`` are the groups that exist, without their control token, and ``edges [N, K]`` their neighbours;
    both are empty until :meth:`know`, and till then any group may be drawn."""

    ids: Tensor
    edges: Tensor

    def __init__(self, dim: int, channel_sizes: tuple[int, ...]) -> None:
        super().__init__(dim, channel_sizes)
        self.search = Search()
        self.register_buffer("ids", torch.zeros(0, len(channel_sizes) - 1, dtype=torch.int32))
        self.register_buffer("edges", torch.zeros(0, 0, dtype=torch.int32))

    @torch.no_grad()
    def know(self, groups: Tensor, most: int = 65_536, edges: int = 32) -> None:
        """From now on draw only what occurs in ``groups [M, C - 1]``: the ``most`` frequent ones of them, and of those
        that are as frequent as the last one a random sample."""
        found, counts = groups.unique(dim=0, return_counts=True)
        shuffled = torch.randperm(len(found), generator=torch.Generator().manual_seed(0)).to(counts.device)
        kept = shuffled[counts[shuffled].argsort(descending=True, stable=True)[:most]].sort().values
        ids = found[kept].to(self.ids)
        if len(ids) < 2:
            raise ValueError(f"{len(ids)} different groups occur; an output layer that draws known ones needs two.")
        vectors = [self.vectors(c) for c in range(1, len(self.channel_sizes))]
        self.ids, self.edges = ids, neighbours(ids, vectors, min(edges, len(ids) - 1)).to(self.edges)

    def sample(self, hidden: Tensor, pick: Pick) -> Tensor:
        if not len(self.ids):
            return super().sample(hidden, pick)
        scores = [logits.float().log_softmax(-1) for logits in self.score(hidden, hidden)]
        items, worth = self.best(scores[1:])
        found = self.ids[items].long()  # [R, M, C - 1]
        tokens = [pick(0, scores[0])]
        for c in range(found.shape[-1]):
            codes = found[..., c]
            share = (worth - worth.amax(1, keepdim=True)).exp()
            chances = torch.zeros_like(scores[c + 1]).scatter_add(1, codes, share)
            tokens.append(pick(c + 1, chances.log()))
            fits = codes == tokens[-1][:, None]
            # A guess may be a token that no group goes on with: what follows it is guessed as if it were not there.
            fits |= ~(fits & worth.isfinite()).any(1, keepdim=True)
            worth = worth.masked_fill(~fits, float("-inf"))
        return torch.stack(tokens, -1)

    def best(self, scores: list[Tensor]) -> tuple[Tensor, Tensor]:
        """``scores`` of each channel of a group, log probabilities ``[R, V_c]`` -> the best groups that exist, as rows
        of ``ids [R, M]``, and the sums of their log probabilities."""
        joined = torch.cat(scores, 1)
        starts = torch.tensor([0, *(s.shape[1] for s in scores[:-1])], device=joined.device).cumsum(0)
        columns = self.ids.long() + starts

        def worth(items: Tensor) -> Tensor:
            return joined.gather(1, columns[items].flatten(1)).view(*items.shape, -1).sum(-1)

        return best_items(self.edges, worth, len(joined), self.search)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """What is known comes with the weights, however much it is."""
        for name in ("ids", "edges"):
            value = state_dict.get(prefix + name)
            if value is not None:
                setattr(self, name, torch.empty_like(value, device=getattr(self, name).device))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
