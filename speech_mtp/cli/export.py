"""Heads for other people's programs: ``export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

FORMATS = "ntp, medusa, vllm-medusa, vllm-eagle3, speculators, deepseek, custom-generate"


def export(
    format_: Annotated[str, typer.Argument(metavar="FORMAT", help=f"One of {FORMATS}.")],
    head: Annotated[str, typer.Option(help="Packaged name or folder of the head.")],
    out: Annotated[Path, typer.Option(help="Folder to write; new, or empty.")],
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Folder or hub id of the head's language model; by default the folder backbone beside the head, "
            "which joint training leaves there, or else the packaged one."
        ),
    ] = None,
) -> None:
    """Write a head, or its language model, in a format that another program reads."""
    from speech_mtp import hub, plugins
    from speech_mtp.exports.base import check_free, open_trunk

    exporter = plugins.build("exports", format_)
    check_free(out)
    folder = hub.find_head(head)
    beside = folder.parent / "backbone"
    if backbone is None and beside.is_dir():
        backbone = str(beside)
    lm = open_trunk(hub.find_backbone(backbone))
    exporter.write(out, hub.load_head(folder, lm), lm)
    print(f"wrote {out}")
