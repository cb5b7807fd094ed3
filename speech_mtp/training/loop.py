"""The one training loop: steps, schedule, log, evaluation, checkpoints, resume."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict
from torch import Tensor
from tqdm import tqdm

from speech_mtp.files import replacing
from speech_mtp.training import checkpoint
from speech_mtp.training.base import Task
from speech_mtp.training.distributed import Workers


@dataclass(frozen=True)
class LoopConfig:
    """``learning_rate`` warms up linearly over ``warmup`` steps and falls by a cosine to ``final_fraction`` of it.

    With ``budget_s`` training takes so many seconds, or ``steps`` if they are over before: the cosine follows
    whichever is further. What a step gives then depends on the machine's pace.

    A run that is resumed may have other ``steps`` (the cosine is then stretched from there on) and may log, evaluate,
    save and stop at other times; every other setting must be the one that it was begun with.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    steps: int
    learning_rate: float
    warmup: int = 200
    final_fraction: float = 0.05
    log_every: int = 20
    evaluate_every: int = 500
    save_every_s: float = 180.0
    max_time_s: float | None = None
    budget_s: float | None = None
    seed: int = 0


MAY_CHANGE = {"steps", "log_every", "evaluate_every", "save_every_s", "max_time_s", "budget_s"}
"""Settings of the loop that may be others when a run is resumed."""


def check_settings(config: LoopConfig, begun_with: dict[str, Any], folder: Path) -> None:
    """Raises ValueError where a setting that must not change differs from what the run in ``folder`` has."""
    for name, value in config.__dict__.items():
        if name not in MAY_CHANGE and begun_with[name] != value:
            raise ValueError(
                f"The run in {folder} was begun with loop.{name} {begun_with[name]}, not {value}; restore that "
                "setting, or give another folder to start afresh."
            )


def learning_rate(config: LoopConfig, step: int, spent_s: float = 0.0) -> float:
    """The rate of step ``step`` (counted from 0), ``spent_s`` seconds after the first."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    progress = min(1.0, max(step / max(1, config.steps), spent_s / (config.budget_s or math.inf)))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * warm * (config.final_fraction + (1 - config.final_fraction) * cosine)


def train(task: Task, config: LoopConfig, folder: Path, workers: Workers | None = None) -> dict[str, float]:
    """Train until ``config.steps``, resuming from ``folder/last`` if it is there; returns the last evaluation.

    ``cpu_s`` of the log is processor time of this process since the first step, measurements of the held-out loss
    included. Every step seeds torch from ``(seed, step)``, so an interrupted run continues on the very same curve. With
    ``max_time_s`` the run stops early, saved, and the next call goes on. Of several processes the main one alone
    writes, and its clock decides when time is up; all of them start from its weights, and none returns before the
    last checkpoint is complete. Raises ValueError where the run was begun with other settings, and for a budget of
    several processes, whose clocks differ.
    """
    workers = workers or Workers()
    if config.budget_s is not None and workers.count > 1:
        raise ValueError("A budget in seconds is for one process; give steps instead (loop.budget_s).")
    main_process = workers.main
    folder.mkdir(parents=True, exist_ok=True)
    state = checkpoint.load(task, folder) or {"step": 0, "config": config.__dict__}
    check_settings(config, state["config"], folder)
    workers.share(task.modules.values())  # also: nobody writes a checkpoint while another process still reads one
    start, cpu_start = time.monotonic(), time.process_time() - state.get("cpu_s", 0.0)
    saved, spent = start, state.get("spent_s", 0.0)
    over = math.inf if config.budget_s is None else config.budget_s
    log = Log(folder, state["step"]) if main_process else None
    bar = tqdm(total=config.steps, initial=state["step"], disable=not (main_process and sys.stderr.isatty()))
    scores: dict[str, float] = {}
    for step in range(state["step"], config.steps if spent < over else 0):
        torch.manual_seed((config.seed * 1_000_003 + step) * workers.count + workers.rank)
        rate = learning_rate(config, step, spent)
        scalars = task.step(step, rate)
        now = time.monotonic()
        speed = (step + 1 - state["step"]) / (now - start)
        pace = {} if task.tokens_per_step is None else {"tokens_per_s": speed * task.tokens_per_step}
        bar.set_postfix({name: f"{value:,.0f}" for name, value in pace.items()}, refresh=False)
        bar.update()
        spent = state.get("spent_s", 0.0) + now - start
        late = config.max_time_s is not None and workers.agreed(now - start > config.max_time_s)
        done = step + 1 == config.steps or late or spent >= over
        if log and (step % config.log_every == 0 or done):
            eta = (config.steps - step) / speed
            cpu = time.process_time() - cpu_start
            log.write({"step": step, "rate": rate, "eta_s": eta, "cpu_s": cpu, **pace, **numbers(scalars)})
        if (step + 1) % config.evaluate_every == 0 or done:
            scores = task.evaluate()
            if log:
                log.write({"step": step, **{f"dev/{k}": v for k, v in scores.items()}})
        if main_process and (done or now - saved > config.save_every_s):
            clocks = {"spent_s": spent, "cpu_s": time.process_time() - cpu_start}
            checkpoint.save(task, folder, step + 1, {"config": config.__dict__, **clocks})
            saved = now
        if done:
            break
    bar.close()
    workers.wait()
    return scores


def numbers(scalars: Mapping[str, float | Tensor]) -> dict[str, float]:
    """The scalars as numbers; waits for the device that they are on."""
    return {name: float(value) for name, value in scalars.items()}


class Log:
    """JSONL always, TensorBoard if it is installed, plain lines where there is no terminal."""

    def __init__(self, folder: Path, step: int) -> None:
        path = folder / "log.jsonl"
        # What follows the last line end is what a kill left of a line.
        lines = path.read_text().split("\n")[:-1] if step and path.exists() else []
        with replacing(path) as aside:
            aside.write_text("".join(line + "\n" for line in lines if json.loads(line)["step"] < step))
        self._file = path.open("a")
        self._board = _tensorboard(folder)

    def write(self, scalars: dict[str, Any]) -> None:
        self._file.write(json.dumps(scalars) + "\n")
        self._file.flush()
        if self._board:
            for name, value in scalars.items():
                self._board.add_scalar(name, value, scalars["step"])
        line = "  ".join(f"{k} {v:.4g}" for k, v in scalars.items())
        tqdm.write(line) if sys.stderr.isatty() else print(line, flush=True)


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder / "tensorboard")
