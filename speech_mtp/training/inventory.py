"""Training of an :class:`~speech_mtp.lm.inventory.Inventory`: parts of a text must find the utterance of the whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import ConfigDict
from torch import Tensor

from speech_mtp.corpus.codes import CodeCorpus
from speech_mtp.lm.inventory import Inventory, InventoryConfig
from speech_mtp.nn.code_graph import Search
from speech_mtp.training.base import Task, begin_step
from speech_mtp.training.distributed import Workers
from speech_mtp.training.lm import UnitStore

MEASURED = 512


@dataclass(frozen=True)
class InventoryTaskConfig:
    """Texts ask for their utterance by a run of their tokens, at least a share ``part`` of them."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    batch: int = 64
    part: float = 0.5
    seed: int = 0


def items_of(corpus: CodeCorpus, units: UnitStore, voice: str | None) -> list[tuple[str, str]]:
    """Ids and texts of the utterances of ``voice`` (None: of the first voice) whose text has stored states, the first
    of each text. Raises ValueError where there are none."""
    voices = sorted({row.voice for row in corpus.rows})
    wanted = voices[0] if voice is None else voice
    found: dict[str, str] = {}
    for row in corpus.rows:
        if row.voice == wanted and row.text in units:
            found.setdefault(row.text, row.id)
    if not found:
        raise ValueError(f"No utterance of {wanted!r} has stored states; the corpus has {', '.join(voices[:5])}.")
    return [(name, text) for text, name in found.items()]


class InventoryTask(Task):
    """Trains the head of an inventory of ``items`` (ids and texts), whose states lie in ``units``."""

    def __init__(
        self,
        config: InventoryConfig,
        items: list[tuple[str, str]],
        units: UnitStore,
        task: InventoryTaskConfig,
        device: torch.device,
        workers: Workers | None = None,
    ) -> None:
        if not 0 < task.part <= 1:
            raise ValueError(f"task.part is {task.part}; it must be a share above 0, and 1 at most.")
        self.workers = workers or Workers()
        self.texts, self.units, self.config, self.device = [text for _, text in items], units, task, device
        self.inventory = Inventory(config, [name for name, _ in items])
        self.inventory.stock(torch.stack([units.states(text).mean(0) for text in self.texts]))
        self.inventory.to(device)
        self.modules = {"inventory": self.inventory}
        self.optimizers = {"inventory": torch.optim.AdamW(self.inventory.parameters(), weight_decay=0.01)}

    def vectors(self, items: np.ndarray, rng: np.random.Generator) -> Tensor:
        """Of a part of each item's text, ``[B, dim]``."""
        found = []
        for item in items:
            states = self.units.states(self.texts[item])
            count = max(1, round(len(states) * rng.uniform(self.config.part, 1)))
            first = int(rng.integers(len(states) - count + 1))
            found.append(states[first : first + count].mean(0))
        return torch.stack(found).to(self.device)

    def step(self, number: int, learning_rate: float) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.config.seed, self.workers.batch_number(number)))
        items = rng.integers(0, len(self.texts), self.config.batch)
        optimizer = self.optimizers["inventory"]
        begin_step(optimizer, learning_rate)
        loss = self.inventory.loss(self.vectors(items, rng), torch.from_numpy(items).to(self.device))
        loss.backward()
        self.workers.average_gradients(list(self.inventory.parameters()))
        optimizer.step()
        return {"loss": loss.detach()}

    def evaluate(self) -> dict[str, float]:
        """Over parts that are drawn for this: the share whose utterance comes first (``first``), is among ten (``ten``)
        and comes first where all are scored (``first_of_all``)."""
        self.inventory.link()
        rng = np.random.default_rng((self.config.seed, 2**32))
        items = rng.choice(len(self.texts), min(MEASURED, len(self.texts)), replace=False)
        vectors, wanted = self.vectors(items, rng), torch.from_numpy(items).to(self.device)
        walked, _ = self.inventory.find(vectors, Search(exhaustive=0))
        every, _ = self.inventory.find(vectors, Search(exhaustive=len(self.texts)))
        return {
            "first": float((walked[:, 0] == wanted).float().mean()),
            "ten": float((walked[:, :10] == wanted[:, None]).any(1).float().mean()),
            "first_of_all": float((every[:, 0] == wanted).float().mean()),
        }

    def export(self, folder: Path) -> None:
        from speech_mtp.hub import save_inventory

        self.inventory.link()
        save_inventory(self.inventory, folder)
