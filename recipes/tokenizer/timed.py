"""Train a codec recipe within a given time: measure the speed, then set the steps so that the rate ends at its end.

    python recipes/tokenizer/timed.py CONFIG SECONDS [key=value ...]

The clock starts when the training data are loaded. Killed and started again, it goes on from the last checkpoint.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from speech_mtp import config as settings
from speech_mtp.training.base import Task
from speech_mtp.training.loop import train
from speech_mtp.training.runs import codec_task
from speech_mtp.training.stages import CodecRun, TrainConfig

PROBE = 0.08
"""The share of the time after which the speed is read."""
EVALUATIONS = 0.03
"""The share that is kept for evaluations and checkpoints."""


def main() -> None:
    path, seconds, overrides = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]
    stage = settings.load(path, TrainConfig, overrides).run
    if not isinstance(stage, CodecRun):
        raise SystemExit(f"{path} is no recipe of a codec (run.kind is {stage.kind!r}).")
    loaded = time.monotonic()
    task = codec_task(stage)
    start = time.monotonic()
    print(f"loaded in {start - loaded:.0f} s; {len(task.data.chances)} voices", flush=True)
    times = note_times(task)
    train(task, replace(stage.loop, steps=10**6, log_every=10, max_time_s=PROBE * seconds), stage.out)
    third = len(times) // 3  # the first steps are slower
    speed = (len(times) - 1 - third) / (times[-1] - times[third])
    done = json.loads((stage.out / "last" / "state.json").read_text(encoding="utf-8"))["step"]
    left = (1 - EVALUATIONS) * seconds - (time.monotonic() - start)
    steps = done + max(1, int(speed * left))
    print(f"{speed:.2f} steps a second; {steps} steps in {seconds:.0f} s", flush=True)
    train(task, replace(stage.loop, steps=steps, max_time_s=left), stage.out)
    task.export(stage.out / "export")
    print(f"exported after {time.monotonic() - start:.0f} s", flush=True)


def note_times(task: Task) -> list[float]:
    """The list to which every step of ``task`` adds the time of its end from now on; it begins with now."""
    times = [time.monotonic()]
    step = task.step

    def timed(number: int, learning_rate: float) -> Any:
        scalars = step(number, learning_rate)
        times.append(time.monotonic())
        return scalars

    task.step = timed  # type: ignore[method-assign]
    return times


if __name__ == "__main__":
    main()
