"""Training of heads on a text trunk: its own answers in, any number of heads out.

The trunk is frozen and reads every batch once; all heads learn from that one forward, each as it would alone: the
gradients of a head are its own, and so are their norm and its clipping. With ``lora`` the trunk learns too: the joint
second stage.

Memory: with a frozen trunk no graph of it exists. The heads are unrolled one after another and one offset at a time on
its detached states (:mod:`speech_mtp.objectives.mtp`), so at most one offset's logits exist. In the second stage the
heads' gradients add up on those states, and one backward pass through the trunk follows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict
from torch import Tensor, nn

from speech_mtp import plugins
from speech_mtp.corpus.answers import Answer
from speech_mtp.evaluation.draft_acceptance import acceptance_rates, count_accepted, count_ranks, rank_accuracies
from speech_mtp.heads.base import Binding, MTPHead, TrunkShape
from speech_mtp.layouts.base import IGNORE
from speech_mtp.lm.fingerprint import fingerprint_of
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.nn.transformer import causal
from speech_mtp.nn.visibility import dense, within_segments
from speech_mtp.objectives.mtp import MTP, MTPConfig, cross_entropy
from speech_mtp.training.answer_data import AnswerData, AnswerDataConfig, frequent_tokens, split
from speech_mtp.training.base import Scalars, Task, begin_step
from speech_mtp.training.distributed import Workers
from speech_mtp.training.kept_states import KeptStates
from speech_mtp.training.lora import Adapters, LoRAConfig
from speech_mtp.training.precision import mixed
from speech_mtp.types import LMOutput, Positions


@dataclass(frozen=True)
class TextMTPTaskConfig:
    """``amp`` computes in bfloat16; with ``lora`` the trunk learns too. Gradients are clipped head by head.

    Up to ``keep_gb`` gigabytes of the frozen trunk's states stay in memory, so that later passes need not read the rows
    again (each process keeps its own; gone on with after a kill they are read anew, and may differ by rounding).
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    data: AnswerDataConfig = field(default_factory=AnswerDataConfig)
    amp: bool = False
    grad_clip: float = 1.0
    weight_decay: float = 0.0
    keep_gb: float = 0.0
    lora: LoRAConfig | None = None


@dataclass(frozen=True)
class HeadSettings:
    """``head`` names the plug-in and its settings, ``objective`` what it is trained on."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    head: dict[str, Any]
    objective: MTPConfig = field(default_factory=MTPConfig)


def build_head(spec: Mapping[str, Any], lm: TextLM, answers: list[Answer], seed: int) -> MTPHead:
    """The head that ``spec`` names, bound to ``lm``; a reduced draft vocabulary holds the answers' frequent tokens."""
    torch.manual_seed(seed)
    head: MTPHead = plugins.build("heads", spec, shape=TrunkShape(**lm.shape()))
    if head.token_map is not None:
        head.set_vocabulary(frequent_tokens(answers, head.num_tokens))
    head.bind(Binding(**lm.binding()))
    return head.to(lm.device)


@dataclass
class Sums:
    """Over the batches of a pass: terms by name, what was counted (of text by :func:`count_accepted`), and, if asked
    for, what :func:`count_ranks` counts."""

    terms: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)
    ranks: dict[str, Tensor] = field(default_factory=dict)

    def add(self, other: Sums) -> None:
        for mine, new in ((self.terms, other.terms), (self.counts, other.counts), (self.ranks, other.ranks)):
            mine.update({name: mine[name] + value if name in mine else value for name, value in new.items()})


class TextMTPTask(Task):
    """Trains ``heads``, which are bound to ``lm``; ``settings`` has the same names.

    Scalars of ``step``: ``loss``, ``<head>/<offset>`` (mean loss of a token), ``<head>/accept/<i>`` on the batch,
    ``norm/<head>``; with adapters also ``next``, the loss of the next token.
    """

    def __init__(
        self,
        lm: TextLM,
        heads: dict[str, MTPHead],
        settings: Mapping[str, HeadSettings],
        answers: list[Answer],
        config: TextMTPTaskConfig,
        workers: Workers | None = None,
    ) -> None:
        if config.data.length > lm.max_positions:
            raise ValueError(f"length is {config.data.length}, but the model reads {lm.max_positions} tokens.")
        self.lm, self.heads, self.settings, self.config = lm.requires_grad_(False), heads, settings, config
        self.workers = workers or Workers()
        told, held_out = split(answers, config.data.dev_every)
        self.train_data = AnswerData(told, config.data)
        self.dev_data = AnswerData(held_out, replace(config.data, prompts=False))
        if config.data.prompts and any({"hard"} & s.objective.losses.keys() for s in settings.values()):
            raise ValueError("What a user says is no hard target; leave prompts out, or train on soft targets alone.")
        if config.keep_gb and config.lora:
            raise ValueError("The states of a trunk that learns cannot be kept; set keep_gb to 0.")
        self.kept = KeptStates(config.keep_gb * 2**30)
        # The top comes last: it is what output layers read.
        self.taps = (*sorted({tap for head in heads.values() for tap in head.taps} - {-1}), -1)
        self.objectives = {name: MTP(head, settings[name].objective, self.taps) for name, head in heads.items()}
        self.adapters = Adapters(lm, config.lora) if config.lora else None
        self.modules = {**heads, **({"adapters": self.adapters} if self.adapters else {})}
        groups = []
        for module in self.modules.values():
            scale = config.lora.rate_scale if config.lora and module is self.adapters else 1.0
            for decayed in (True, False):
                params = [p for p in module.parameters() if (p.ndim > 1) == decayed]
                groups.append({"params": params, "scale": scale, "weight_decay": config.weight_decay * decayed})
        self.optimizers = {"heads": torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)}

    def step(self, number: int, learning_rate: float) -> Scalars:
        for head in self.heads.values():
            head.train()
        optimizer = self.optimizers["heads"]
        begin_step(optimizer, learning_rate)
        number = self.workers.batch_number(number)
        sums = self.backward(self.train_data.batch(number), self.train_data.rows_of(number))
        self.workers.average_gradients([p for module in self.modules.values() for p in module.parameters()])
        for name, module in self.modules.items():
            sums.terms[f"norm/{name}"] = nn.utils.clip_grad_norm_(module.parameters(), self.config.grad_clip)
        optimizer.step()
        return Scalars(lambda: self.scalars(sums, ("accept",)))

    def backward(self, positions: Positions, rows: Sequence[int] = ()) -> Sums:
        """Every term back-propagated as soon as it is computed, heads first, then the trunk if it learns. ``rows`` are
        the numbers under which states may be kept."""
        joint, sums = self.adapters is not None, Sums()
        with self.states(positions, grad=joint, rows=rows) as (out, positions):
            hidden = out.hidden.detach().float().requires_grad_(joint)
            total = torch.zeros((), device=hidden.device)
            for loss, weight in self.terms(LMOutput(hidden), positions, sums):
                with torch.autocast(hidden.device.type, enabled=False):
                    (weight * loss).backward(retain_graph=True)
                total += weight * loss.detach()
                del loss  # and with it this offset's logits
        if hidden.grad is not None:
            out.hidden.backward(hidden.grad.to(out.hidden.dtype))
        sums.terms["loss"] = total
        return sums

    def terms(
        self,
        out: LMOutput,
        positions: Positions,
        sums: Sums,
        noise: torch.Generator | None = None,
        ranked: bool = False,
    ) -> Iterator[tuple[Tensor, float]]:
        """One term after another and its weight; what is to be logged is added to ``sums``, ranks if ``ranked``. Light
        terms of a head come as one."""
        share = self.config.lora.heads_weight if self.config.lora else 1.0
        if self.adapters:
            assert positions.labels is not None, "training positions carry labels"
            answered = positions.labels[..., 0] != IGNORE
            scores = self.lm.output.logits(out.top[answered]).float()
            loss = cross_entropy(scores, positions.labels[..., 0][answered])
            sums.terms["next"] = loss.detach()
            yield loss, 1.0
            del scores, loss
        for name, objective in self.objectives.items():
            guesses: dict[int, tuple[Tensor, Tensor]] = {}
            ranks: list[Tensor] = []
            light: Tensor | None = None
            for step in objective.steps(out, positions, noise, ranked):
                sums.terms[f"{name}/{step.name}"] = step.loss.detach()
                if step.right is not None and step.known is not None:
                    guesses[step.offset] = step.right, step.known
                if step.ranks is not None:
                    ranks.append(count_ranks(step.ranks))
                if step.light:
                    light = step.weight * step.loss + (0 if light is None else light)
                else:
                    yield step.loss, share * step.weight
                del step
            if light is not None:
                yield light, share
                light = None
            sums.counts[name] = count_accepted(guesses)
            if ranks:
                sums.ranks[name] = torch.stack(ranks)

    @contextmanager
    def states(
        self, positions: Positions, grad: bool, rows: Sequence[int] = ()
    ) -> Iterator[tuple[LMOutput, Positions]]:
        """The trunk's states of ``positions`` and these on its device, while computing in the configured precision."""
        positions = positions.to(self.lm.device)
        kept = self.kept.find(rows, positions.segment.shape[1]) if rows else None
        with mixed(self.config.amp, self.lm.device):
            with torch.set_grad_enabled(grad):
                out = self._read(positions) if kept is None else LMOutput(kept)
            if kept is None and rows:
                self.kept.keep(rows, out.hidden, (positions.segment > 0).sum(1))
            yield out, positions

    def _read(self, positions: Positions) -> LMOutput:
        rows, length = positions.segment.shape
        if int(positions.segment.max()) > 1:
            mask = dense(within_segments(positions.segment), rows, length, self.lm.device)
        else:  # padding comes last and is seen by nobody
            mask = causal(positions.segment[..., None])[1]
        x = self.lm.embed(positions.tokens[..., 0])
        return self.lm.trunk_states(x, positions.index, mask, None, self.taps)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """On the held-out answers: the mean of every term and, per head, what :func:`acceptance_rates` gives.

        How often a token is a head's first, second, ... guess is kept for the export: static trees are built of it.
        """
        for head in self.heads.values():
            head.eval()
        sums = Sums()
        for number in range(len(self.dev_data)):
            noise = torch.Generator().manual_seed(number)
            with self.states(self.dev_data.batch(number), grad=False) as (out, positions):
                batch = Sums()
                deque(
                    self.terms(LMOutput(out.hidden.float()), positions, batch, noise, ranked=True), maxlen=0
                )  # keeps no step
            sums.add(batch)
        for name, found in sums.ranks.items():
            self.heads[name].accuracies = rank_accuracies(found)
        sums.terms = {name: value / len(self.dev_data) for name, value in sums.terms.items()}
        return self.scalars(sums, ("accept", "conditional", "tokens_per_forward"))

    def scalars(self, sums: Sums, rates: tuple[str, ...]) -> dict[str, float]:
        scores = {name: float(value) for name, value in sums.terms.items()}
        for name, counts in sums.counts.items():
            found = acceptance_rates(counts)
            scores |= {f"{name}/{rate}": value for rate, value in found.items() if rate.startswith(rates)}
        return scores

    def export(self, folder: Path) -> None:
        """A folder per head; trained adapters come merged into a copy of the trunk, ``backbone``, which the heads then
        belong to."""
        from speech_mtp.hub import save_head

        fingerprint = self.lm.fingerprint
        if self.adapters:
            self.adapters.save_merged(folder / "backbone")
            fingerprint = fingerprint_of(folder / "backbone")
        for name, head in self.heads.items():
            save_head(head, folder / name, self.settings[name].head, fingerprint)
