"""The report of predictability as tables of plain text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from speech_mtp.evaluation.tables import aligned


def predictability_table(report: Mapping[str, Any]) -> str:
    """The parts that a report has, one table each."""
    makers = {"views": _views, "probes": _probes, "swaps": _swaps}
    return "\n\n".join(maker(report[name]) for name, maker in makers.items() if report.get(name))


def _views(views: Mapping[str, Any]) -> str:
    streams = list(next(iter(views.values())))
    title = ["equal codes, %", *(f"{stream} (chance)" for stream in streams)]
    lines = [[name, *(" ".join(map(_share, found[stream])) for stream in streams)] for name, found in views.items()]
    return aligned(title, lines)


def _probes(probes: Mapping[str, Any]) -> str:
    entropy = probes["entropy"]
    title = ["bits", "per frame", "per second"]
    lines: list[Sequence[str]] = []
    for stream, found in entropy.items():
        for name, figure in found.items():
            whole = figure.get("bits_per_frame", figure)
            pace = f"{figure['bits_per_second']:.0f}" if "bits_per_second" in figure else "-"
            lines.append([f"{stream} {name}", _number(whole), pace])
    return aligned(title, lines) + "\n\n" + _linear(probes["linear"])


def _linear(linear: Mapping[str, Any]) -> str:
    names = list(dict.fromkeys(name for found in linear.values() for name in found))
    lines = []
    for name in names:
        cells = [found.get(name) for found in linear.values()]
        lines.append(
            [name, *("-" if cell is None else _share(cell) if "chance" in cell else _r(cell) for cell in cells)]
        )
    return aligned(["linear probe: % (chance), or correlation", *linear], lines)


def _swaps(swaps: Mapping[str, Any]) -> str:
    names = [name for name in next(iter(swaps.values())) if name != "trials"]
    lines = [
        [stream, *("-" if found[name] is None else f"{found[name]:.2f}" for name in names)]
        for stream, found in swaps.items()
    ]
    return aligned(["taken from the donor", *(name.replace("_", " ") for name in names)], lines)


def _share(figure: Mapping[str, Any]) -> str:
    low, high = figure["interval"]
    return f"{100 * figure['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}] ({100 * figure['chance']:.1f})"


def _number(figure: Mapping[str, Any]) -> str:
    low, high = figure["interval"]
    return f"{figure['value']:.2f} [{low:.2f}, {high:.2f}]"


def _r(figure: Mapping[str, Any]) -> str:
    return f"{_number(figure)} (R2 {figure['r2']:.2f})"
