"""How fast a trunk is trained, beside the same model in ``transformers``: step by step, in turn, in one process.

Both have the same weights at first, the same batches, masks, precision, clipping and optimiser, so their first losses
are the same.
"""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from speech_mtp.layouts.base import IGNORE
from speech_mtp.lm.backbone import load_causal_lm
from speech_mtp.nn.visibility import dense, within_segments
from speech_mtp.progress import progress
from speech_mtp.training.base import begin_step
from speech_mtp.training.precision import mixed
from speech_mtp.training.trunk import TrunkTask, adamw

RATE = 1e-3
DEFINITIONS = {
    "tokens_per_s": "of the median step; on a CPU by the processor time of the process, on a GPU by the clock",
    "ratio": "ours over transformers, of steps that were made one after the other: median, least, most",
}


class Peer:
    """The model of ``task`` in ``transformers``, trained as the task trains it. Parts of a step are not divided up."""

    def __init__(self, task: TrunkTask) -> None:
        self.task = task
        with TemporaryDirectory() as aside:
            task.export(Path(aside) / "model")
            self.model = load_causal_lm(Path(aside) / "model", torch.float32, task.device)[0].train()
        self.parameters = list(self.model.parameters())
        self.optimizer = adamw(self.parameters, task.config.weight_decay)

    def step(self, number: int) -> float:
        """The loss of batch ``number``, after one update."""
        task = self.task
        positions = task.train_data.batch(number).to(task.device)
        assert positions.labels is not None, "rows carry labels"
        begin_step(self.optimizer, RATE)
        rows, length = positions.segment.shape
        mask = dense(within_segments(positions.segment), rows, length, task.device)
        given = {"position_ids": positions.index, "attention_mask": mask, "use_cache": False}
        with mixed(task.config.amp, task.device):
            scores = self.model(input_ids=positions.tokens[..., 0], **given).logits.float()
            loss = F.cross_entropy(scores.flatten(0, 1), positions.labels.flatten(), ignore_index=IGNORE)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, task.config.grad_clip)
        self.optimizer.step()
        return float(loss.detach())


def trunk_speed(task: TrunkTask, steps: int) -> dict[str, Any]:
    """``steps`` of each, after one that is not counted. Raises ValueError where a step has parts."""
    if task.config.accumulate != 1:
        raise ValueError("Speed is measured on whole steps; set run.task.accumulate to 1.")
    peer = Peer(task)
    train = {"ours": lambda number: float(task.step(number, RATE)["loss"]), "transformers": peer.step}
    seconds: dict[str, list[float]] = {name: [] for name in train}
    losses: dict[str, float] = {}
    for number in progress(range(steps + 1), "steps", "step"):
        for name in sorted(train, reverse=bool(number % 2)):
            begun = _now(task.device)
            loss = train[name](number)
            seconds[name].append(_now(task.device) - begun)
            losses.setdefault(name, loss)
    ratios = [b / a for a, b in list(zip(seconds["ours"], seconds["transformers"], strict=True))[1:]]
    return {
        "tokens_per_s": {name: task.tokens_per_step / median(spent[1:]) for name, spent in seconds.items()},
        "ratio": {"median": median(ratios), "least": min(ratios), "most": max(ratios)},
        "first_loss": losses,
        "steps": steps,
        "definitions": DEFINITIONS,
    }


def _now(device: torch.device) -> float:
    """Seconds, of the processor or of the clock."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()
