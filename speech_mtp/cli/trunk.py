"""Measuring how fast a trunk is trained: ``bench trunk``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speech_mtp.cli.shared import Overrides, check_output, write_report


def bench_trunk(
    config: Annotated[Path, typer.Argument(help="A recipe of the kind trunk.")],
    out: Annotated[Path, typer.Option("--json", help="File for the report.")],
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each that are counted.")] = 10,
) -> None:
    """Training steps of a recipe's trunk and of the same model in transformers, in turn: tokens per second."""
    check_output(out, (".json",))
    from speech_mtp import config as settings
    from speech_mtp.threads import use_threads
    from speech_mtp.training.inputs import check_inputs
    from speech_mtp.training.stages import TrainConfig, TrunkRun
    from speech_mtp.training.trunk_speed import trunk_speed
    from speech_mtp.training.trunk_stages import trunk_task

    use_threads()
    stage = settings.load(config, TrainConfig, overrides or ()).run
    if not isinstance(stage, TrunkRun):
        raise ValueError(f"{config} holds a stage of the kind {stage.kind!r}; name a recipe of the kind 'trunk'.")
    check_inputs(stage)
    report = trunk_speed(trunk_task(stage), steps)
    speeds, ratio = report["tokens_per_s"], report["ratio"]["median"]
    print(f"{speeds['ours']:,.0f} tokens/s, transformers {speeds['transformers']:,.0f}, ratio {ratio:.2f}")
    write_report(out, {"recipe": str(config), "overrides": overrides or [], **report})
