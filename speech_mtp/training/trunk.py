"""Training of a trunk of text: packed documents in, a causal LM out, from nothing or from a Hugging Face folder.

The objective says what the trunk reads of a batch (:meth:`Objective.prepare`), which terms its states give, and what
each counts. Each term is back-propagated to the states before the next is made, so that the logits of one exist at a
time; one backward pass through the trunk follows (Gloeckle et al. 2024, section 2). What is held out is measured by the
next token alone, whatever the objective, so that objectives compare.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict
from torch import Tensor, nn

from speech_mtp.corpus.document_store import DocumentStore
from speech_mtp.hub import save_head
from speech_mtp.layouts.base import IGNORE
from speech_mtp.lm.causal_lm import CausalLM
from speech_mtp.lm.fingerprint import fingerprint_of
from speech_mtp.lm.llama_folder import write_llama
from speech_mtp.nn.visibility import mask_of, within_segments
from speech_mtp.objectives.base import Course, Inputs, Objective
from speech_mtp.objectives.ntp import NTP
from speech_mtp.training.base import Scalars, Task, begin_step
from speech_mtp.training.distributed import Workers
from speech_mtp.training.packed_rows import PackedRows
from speech_mtp.training.precision import mixed
from speech_mtp.types import LMOutput, Positions

COMPILER = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
"""Of what ``torch.compile`` writes for a CPU: the one that it takes."""


@dataclass(frozen=True)
class TrunkTaskConfig:
    """A step reads ``accumulate`` times ``batch`` rows of ``length`` tokens in every process. ``amp`` computes in
    bfloat16 (None: where that is faster). ``dev_rows`` rows all over the dev split are measured (None: all).
    ``compile`` fuses the trunk's small operations: half a minute at the start, and shorter steps, on CPUs too."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    batch: int = 16
    length: int = 512
    accumulate: int = 1
    amp: bool | None = None
    compile: bool = False
    grad_clip: float = 1.0
    weight_decay: float = 0.1
    dev_rows: int | None = 128
    seed: int = 0


class TrunkTask(Task):
    """Trains ``lm`` on ``store`` by ``objective`` (default: the next token), for ``steps`` where it must know.

    Scalars of ``step``: ``loss``, ``norm`` and the objective's terms, unweighted; of ``evaluate``: ``loss`` (nats a
    token) and ``bits_per_byte``. Raises ValueError for documents that do not fit the trunk or are too few for a step.
    """

    def __init__(
        self,
        lm: CausalLM,
        store: DocumentStore,
        config: TrunkTaskConfig,
        device: torch.device,
        workers: Workers | None = None,
        objective: Objective | None = None,
        steps: int | None = None,
    ) -> None:
        self.workers = workers or Workers()
        _check(lm, store, config)
        self.lm, self.store, self.config, self.device = lm.to(device), store, config, device
        self.objective = objective or NTP()
        rows = config.batch, config.length, config.seed
        least = config.batch * config.accumulate * self.workers.count
        self.train_data, self.dev_data = PackedRows(store, "train", *rows, least), PackedRows(store, "dev", *rows)
        self.tokens_per_step: int = least * config.length
        self.objective.bind(lm, Course(config.length, steps))
        self._number = 0
        self.modules = {"trunk": lm}
        if isinstance(self.objective, nn.Module):
            self.modules["objective"] = self.objective.to(device)
        self.parameters = [p for module in self.modules.values() for p in module.parameters()]
        self.optimizers = {"trunk": adamw(self.parameters, config.weight_decay)}
        if config.compile and device.type == "cpu" and not shutil.which(COMPILER):
            raise ValueError(
                f"task.compile needs the C++ compiler {COMPILER}; install it, name another in CXX, or leave it out."
            )
        self._trunk: Any = torch.compile(lm) if config.compile else lm

    def step(self, number: int, learning_rate: float) -> Mapping[str, float | Tensor]:
        for module in self.modules.values():
            module.train()
        self._number = number
        self.objective.at_step(number)
        self.lm.requires_grad_(self.objective.trains_trunk)
        optimizer, count = self.optimizers["trunk"], self.config.accumulate
        begin_step(optimizer, learning_rate)
        sums: dict[str, Tensor] = {}
        for part in range(count):
            batch = self.train_data.batch(self.workers.batch_number(number * count + part))
            for name, value in self.backward(batch, 1 / count).items():
                sums[name] = sums[name] + value if name in sums else value
        # What has no gradient is not trained at this step, in no process, and must not be given zeros.
        self.workers.average_gradients([p for p in self.parameters if p.grad is not None])
        sums["norm"] = nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip)
        optimizer.step()
        return Scalars(lambda: {name: float(value) for name, value in sums.items()})

    def backward(self, positions: Positions, share: float) -> dict[str, Tensor]:
        """Back-propagate ``share`` of every term times its weight; ``share`` of the terms, and of the weighted sum,
        ``loss``."""
        inputs = self.objective.prepare(self.lm, positions.to(self.device))
        with mixed(self.config.amp, self.device):
            out = self.states(inputs)
            hidden = out.hidden.detach().requires_grad_()
            found: dict[str, Tensor] = {}
            for name, term in self.objective.terms(self.lm, LMOutput(hidden), inputs.positions):
                (share * self.objective.weight(name) * term).backward(retain_graph=True)
                found[name] = share * term.detach()
                del term  # and with it its logits
        if out.hidden.requires_grad:
            out.hidden.backward(hidden.grad)
        total = torch.stack([self.objective.weight(name) * term for name, term in found.items()]).sum()
        return {"loss": total, **found}

    def states(self, inputs: Inputs) -> LMOutput:
        """The trunk's states of ``inputs``."""
        positions = inputs.positions
        x = self.lm.embed(positions.tokens[..., 0]) if inputs.vectors is None else inputs.vectors
        rows, length = positions.segment.shape
        mask = mask_of(inputs.sees or within_segments(positions.segment), rows, length, self.device)
        out: LMOutput = self._trunk(x, positions.index, mask, self.objective.taps)
        return out

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        self.lm.eval()
        total, count, ntp = 0.0, 0, NTP()
        for batch in self.dev_data.in_order(self.config.dev_rows):
            positions = batch.to(self.device)
            assert positions.labels is not None, "rows carry labels"
            known = int((positions.labels != IGNORE).sum())
            with mixed(self.config.amp, self.device):
                ((_, mean),) = ntp.terms(self.lm, self.states(Inputs(positions)), positions)
            total, count = total + float(mean) * known, count + known
        loss = self.workers.of_main(total / count)
        self.objective.observe(self._number + 1, loss)
        return {"loss": loss, "bits_per_byte": loss * self.store.labels_per_byte("dev") / math.log(2)}

    def export(self, folder: Path) -> None:
        """A plain Hugging Face folder, with the tokenizer of the documents; each of the objective's draft heads in a
        folder of its own name in it."""
        write_llama(self.lm, folder, self.store.folder)
        for name, (head, spec) in self.objective.heads().items():
            save_head(head, folder / name, spec, fingerprint_of(folder))


def adamw(parameters: list[nn.Parameter], weight_decay: float) -> torch.optim.AdamW:
    """AdamW in which matrices alone decay."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def _check(lm: CausalLM, store: DocumentStore, config: TrunkTaskConfig) -> None:
    for name in ("batch", "length", "accumulate"):
        if getattr(config, name) < 1:
            raise ValueError(f"task.{name} is {getattr(config, name)}; it must be 1 or more.")
    if config.length > lm.config.max_positions:
        raise ValueError(
            f"length is {config.length}, but the trunk reads {lm.config.max_positions} tokens; change one."
        )
    if lm.vocab_size < store.vocab_size:
        raise ValueError(
            f"The trunk knows {lm.vocab_size} tokens, and the documents in {store.folder} have {store.vocab_size}; "
            "make them with the trunk's own tokenizer."
        )
