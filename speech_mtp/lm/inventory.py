"""A closed inventory of utterances, each with a long id: which of them says what a text asks for.

A service that says the same hundred things plays recordings. Which one is meant is found here as RPG finds an item (Hou
et al. 2025, facebookresearch/RPG_KDD2025): an utterance's id are the digits of a product quantiser of its text's vector
(Jégou et al. 2011), unordered; a head predicts them all at once, from the backbone's states of whatever text there is;
the utterance with the best sum of log probabilities is looked for along a graph (:mod:`speech_mtp.nn.code_graph`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from speech_mtp.lm.known_groups import Cosine
from speech_mtp.nn.code_graph import Search, best_items, neighbours, product_ids


@dataclass(frozen=True)
class InventoryConfig:
    """``dim`` numbers of a text's vector; ids of ``digits`` with ``size`` values each, judged in ``width`` numbers;
    every item has ``edges`` neighbours."""

    dim: int
    digits: int = 16
    size: int = 64
    width: int = 128
    edges: int = 32

    def __post_init__(self) -> None:
        wrong = next((name for name, value in asdict(self).items() if value < (2 if name == "size" else 1)), None)
        if wrong:
            raise ValueError(f"An inventory has {wrong} {getattr(self, wrong)}; give a larger number (model.{wrong}).")


class Inventory(nn.Module):
    """``names`` of the items, in the order of ``ids [N, digits]``."""

    ids: Tensor
    edges: Tensor

    def __init__(self, config: InventoryConfig, names: Sequence[str]) -> None:
        super().__init__()
        if len(names) < 2:
            raise ValueError(f"An inventory of {len(names)} utterances leaves nothing to find; give two or more.")
        self.config, self.names = config, tuple(names)
        self.search = Search()
        self.enter = nn.Sequential(nn.LayerNorm(config.dim), nn.Linear(config.dim, config.width))
        self.digits = Cosine(config.width, (config.size,) * config.digits)
        count = min(config.edges, len(names) - 1)
        self.register_buffer("ids", torch.zeros(len(names), config.digits, dtype=torch.int32))
        self.register_buffer("edges", torch.zeros(len(names), count, dtype=torch.int32))

    def to_config(self) -> dict[str, Any]:
        return {**asdict(self.config), "names": list(self.names)}

    @classmethod
    def from_config(cls, entries: dict[str, Any]) -> Inventory:
        """From the :meth:`to_config` of another one."""
        settings = dict(entries)
        names = settings.pop("names")
        return cls(InventoryConfig(**settings), names)

    @torch.no_grad()
    def stock(self, vectors: Tensor, seed: int = 0) -> None:
        """Give every item its id, by the vectors of their texts ``[N, dim]``."""
        flat = F.layer_norm(vectors.float(), vectors.shape[-1:])
        self.ids.copy_(product_ids(flat, self.config.digits, self.config.size, seed))

    @torch.no_grad()
    def link(self) -> None:
        """Join the items whose digits are alike, by what the head has learnt of digits."""
        vectors = [self.digits.vectors(c) for c in range(self.config.digits)]
        self.edges.copy_(neighbours(self.ids, vectors, self.edges.shape[1]))

    def loss(self, vectors: Tensor, items: Tensor) -> Tensor:
        """Mean over digits of their cross entropy: ``vectors [B, dim]`` of texts that ask for ``items [B]``."""
        labels = self.ids[items].long()
        losses = [F.cross_entropy(logits, labels[:, c]) for c, logits in enumerate(self._scores(vectors))]
        return torch.stack(losses).mean()

    def _scores(self, vectors: Tensor) -> list[Tensor]:
        hidden = self.enter(vectors)
        return self.digits.score(hidden, hidden)

    @torch.no_grad()
    def find(self, vectors: Tensor, search: Search | None = None) -> tuple[Tensor, Tensor]:
        """``vectors [R, dim]`` of texts -> the items that fit them, the best first, ``[R, M]``, and the sums of their
        digits' log probabilities."""
        laws = torch.stack([logits.log_softmax(-1) for logits in self._scores(vectors)], 1)

        def worth(items: Tensor) -> Tensor:
            wanted = self.ids[items].long().transpose(1, 2)  # [R, digits, M]
            return laws.gather(2, wanted).sum(1)

        return best_items(self.edges, worth, len(vectors), search or self.search)
