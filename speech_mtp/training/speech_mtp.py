"""Training of draft heads on a frozen speech LM: text units and aligned codes in, any number of heads out.

The trunk reads every batch once, without a graph; all heads learn from that one forward, each as it would alone: the
gradients of a head are its own, and so are their norm and its clipping. The output layer is the trunk's and frozen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict
from torch import Tensor, nn

from speech_mtp import plugins
from speech_mtp.corpus.codes import CodeCorpus
from speech_mtp.heads.base import Binding, MTPHead, TrunkShape
from speech_mtp.lm.group_lm import GroupLM
from speech_mtp.objectives.speech_mtp import SpeechMTP
from speech_mtp.training.base import Task, begin_step
from speech_mtp.training.distributed import Workers
from speech_mtp.training.lm import LMData, TextStore
from speech_mtp.training.text_mtp import HeadSettings, Sums
from speech_mtp.types import Codes, LMOutput, Positions, TextUnits

Batch = tuple[Codes, Tensor, TextUnits]


@dataclass(frozen=True)
class SpeechMTPTaskConfig:
    """``batch`` utterances a step; gradients are clipped head by head."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    batch: int = 24
    grad_clip: float = 1.0
    weight_decay: float = 0.0
    seed: int = 0


def build_head(spec: Mapping[str, Any], lm: GroupLM, seed: int) -> MTPHead:
    """The head that ``spec`` names, bound to ``lm``. Raises ValueError for one that needs text."""
    torch.manual_seed(seed)
    head: MTPHead = plugins.build("heads", spec, shape=TrunkShape(**lm.shape()))
    head.bind(Binding(**lm.binding()))
    return head.to(lm.device)


class SpeechMTPTask(Task):
    """Trains ``heads``, which are bound to ``lm``; ``settings`` has the same names.

    Scalars: ``<head>/<offset>`` (mean loss of a token), ``<head>/channels/<offset>`` (how many channels in a row the
    best guess has right, of those of a group), and in training ``loss`` and ``norm/<head>``.
    """

    def __init__(
        self,
        lm: GroupLM,
        heads: dict[str, MTPHead],
        settings: Mapping[str, HeadSettings],
        corpus: CodeCorpus,
        units: TextStore,
        config: SpeechMTPTaskConfig,
        workers: Workers | None = None,
    ) -> None:
        self.lm, self.heads, self.settings, self.config = lm.requires_grad_(False).eval(), heads, settings, config
        self.workers = workers or Workers()
        self.train_data = LMData(corpus, units, config, "train")
        self.dev_data = LMData(corpus, units, config, "dev")
        # The top comes last: it is what output layers read.
        self.taps = (*sorted({tap for head in heads.values() for tap in head.taps} - {-1}), -1)
        self.objectives = {
            name: SpeechMTP(head, lm, settings[name].objective, self.taps) for name, head in heads.items()
        }
        self.modules = dict(heads)
        groups = [
            {
                "params": [p for p in head.parameters() if (p.ndim > 1) == decayed],
                "weight_decay": config.weight_decay * decayed,
            }
            for head in heads.values()
            for decayed in (True, False)
        ]
        self.optimizers = {"heads": torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)}

    def step(self, number: int, learning_rate: float) -> dict[str, float]:
        for head in self.heads.values():
            head.train()
        optimizer = self.optimizers["heads"]
        begin_step(optimizer, learning_rate)
        sums = self.terms(self.train_data.batch(self.workers.batch_number(number)), learn=True)
        self.workers.average_gradients([p for head in self.heads.values() for p in head.parameters()])
        for name, head in self.heads.items():
            sums.terms[f"norm/{name}"] = nn.utils.clip_grad_norm_(head.parameters(), self.config.grad_clip)
        optimizer.step()
        return scalars(sums)

    def terms(self, batch: Batch, learn: bool) -> Sums:
        """Every term of a batch, back-propagated as soon as it is computed if the heads shall ``learn``."""
        out, positions = self.read(batch)
        sums = Sums(terms={"loss": torch.zeros((), device=out.hidden.device)})
        with torch.set_grad_enabled(learn):
            for name, objective in self.objectives.items():
                for step in objective.steps(out, positions):
                    if learn:
                        (step.weight * step.loss).backward(retain_graph=True)
                    sums.terms["loss"] += step.weight * step.loss.detach()
                    sums.terms[f"{name}/{step.offset}"] = step.loss.detach()
                    sums.counts[f"{name}/channels/{step.offset}"] = runs(step.right)
                    del step  # and with it this offset's logits
        return sums

    @torch.no_grad()
    def read(self, batch: Batch) -> tuple[LMOutput, Positions]:
        """The frozen trunk's states of a batch, and its positions."""
        codes, unit, units = batch
        device = self.lm.device
        assert codes.timbre is not None, "the code corpus has a timbre for every row"
        codes = Codes(codes.frames.to(device), codes.lengths.to(device), codes.timbre.to(device))
        units = units.to(device)
        positions = self.lm.layout.pack(codes, unit.to(device), units.lengths)
        assert codes.timbre is not None
        return self.lm(positions, units, codes.timbre, self.taps), positions

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """The scalars of the dev split."""
        for head in self.heads.values():
            head.eval()
        sums = Sums()
        for number in range(len(self.dev_data)):
            sums.add(self.terms(self.dev_data.batch(number), learn=False))
        sums.terms = {name: value / len(self.dev_data) for name, value in sums.terms.items()}
        return scalars(sums)

    def export(self, folder: Path) -> None:
        """A folder per head."""
        from speech_mtp.hub import save_head

        for name, head in self.heads.items():
            spec = self.settings[name].head
            card = f"# Draft head {name}\n\n`{spec}` for groups of speech tokens, trained on a frozen speech LM.\n"
            save_head(head, folder / name, spec, self.lm.fingerprint, card=card)


def runs(right: Tensor) -> Tensor:
    """``right [n, C]`` -> ``[C + 1]``: at how many positions the first 1, 2, ... channels are all right, and n."""
    reached = right.long().cumprod(-1).sum(0)
    return torch.cat([reached, reached.new_tensor([len(right)])])


def scalars(sums: Sums) -> dict[str, float]:
    found = {name: float(value) for name, value in sums.terms.items()}
    return found | {name: float(c[:-1].sum() / c[-1].clamp(min=1)) for name, c in sums.counts.items()}
