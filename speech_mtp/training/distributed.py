"""Several processes, one training: started by ``accelerate launch``, a single process without it.

Every process draws its own share of each batch and gradients are averaged, so N processes with batch b train the
model that one process trains with batch N * b. Without GPUs, say ``ACCELERATE_USE_CPU=true accelerate launch
--multi_gpu --num_processes N``: with ``--cpu`` that launcher starts one process only, whatever N is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist

from speech_mtp import plugins


class Workers:
    """This process among its peers; ``Workers()`` alone costs nothing and needs no extra package."""

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        if self.count > 1:
            accelerate: Any = plugins.require("accelerate", "train")
            self.state = accelerate.PartialState()

    @property
    def main(self) -> bool:
        return self.rank == 0

    def batch_number(self, step: int) -> int:
        """The batch that this process draws at ``step``."""
        return step * self.count + self.rank

    def average_gradients(self, parameters: list[torch.nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes (a missing one counts as zero)."""
        if self.count == 1:
            return
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
        flat = torch.cat([g.flatten() for g in grads])
        dist.all_reduce(flat)
        flat /= self.count
        at = 0
        for p, g in zip(parameters, grads, strict=True):
            p.grad = flat[at : at + g.numel()].view_as(g)
            at += g.numel()

    def share(self, modules: Iterable[torch.nn.Module]) -> None:
        """Give every process the main one's weights and buffers."""
        if self.count == 1:
            return
        for module in modules:
            for value in (*module.parameters(), *module.buffers()):
                dist.broadcast(value.data, src=0)

    def agreed(self, decision: bool) -> bool:
        """The main process's decision: clocks differ, and a process that stops alone leaves the others waiting."""
        return bool(self.of_main(float(decision)))

    def of_main(self, value: float) -> float:
        """The main process's ``value``: sums of two devices differ in their last bits, and so might what follows."""
        if self.count == 1:
            return value
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        found = torch.tensor(value, device=device, dtype=torch.float64)
        dist.broadcast(found, src=0)
        return float(found)

    def wait(self) -> None:
        """Until every process is here."""
        if self.count > 1:
            dist.barrier()
