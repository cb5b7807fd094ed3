"""Objectives of trunks side by side: what each run of a study left in its folder, over seeds, against the next token.

A study's folder holds ``<objective>/<seed>``, each with ``log.jsonl`` of its training, ``text.json`` (``eval text`` of
the trunk), and, where there are, ``completion.json`` (``eval completion`` of it), ``drafts.json`` (the same with the
head that the objective left behind) and ``probe.json`` (with a head of one kind, trained before every trunk).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

from speech_mtp.evaluation.tables import aligned

BASE = "trunk"
"""The run that others are compared with: the next token alone."""
CONTINUED = {"concept": "trunk_more", "trunk_own": "trunk_more"}
"""Runs that go on with a trunk are compared with one that goes on so by the next token."""
ELSEWHERE = ("trunk_own",)
"""Runs that hold documents of their own out in training; what stands in ``text.json`` is measured on those of all."""
QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Of Student's t with 1, 2, ... degrees of freedom: 97.5 %."""
FIGURES = ("loss", "bits_per_byte", "valid_lines", "next_line", "whole", "drafts", "probe", "cpu_s")
DEFINITIONS = {
    "loss": "nats a token of the held-out documents that were measured, next token alone",
    "bits_per_byte": "the same nats as bits, over bytes of text",
    "valid_lines": "share of written lines before the first fault that Python's parser finds",
    "next_line": "share of functions whose next line is written to the letter",
    "whole": "share of functions whose rest is written to the letter",
    "drafts": "tokens a forward with the head that the objective leaves behind",
    "probe": "tokens a forward with a head of one kind, trained before each trunk, which stands still",
    "cpu_s": "processor seconds of the training, its measurements included; a teacher's and an earlier trunk's are not",
    "against": "mean over seeds of the difference to the base of the same seed; the interval is Student's, 95 %",
}


def study(folder: Path) -> dict[str, Any]:
    """The rows of a study, as plain JSON. Raises ValueError for a folder without any run that was measured."""
    found = {path.name: _seeds(path) for path in sorted(folder.iterdir()) if path.is_dir()} if folder.is_dir() else {}
    runs = {name: seeds for name, seeds in found.items() if seeds}
    if not runs:
        raise ValueError(f"{folder} holds no run of a study: none of its folders has <seed>/text.json; check the path.")
    order = [BASE] * (BASE in runs) + [name for name in runs if name != BASE]
    return {"rows": [_row(name, runs) for name in order], "definitions": DEFINITIONS}


def _seeds(folder: Path) -> dict[str, dict[str, float]]:
    return {path.parent.name: figures_of(path.parent) for path in sorted(folder.glob("*/text.json"))}


def figures_of(run: Path) -> dict[str, float]:
    """What one run gave."""
    text = _read(run / "text.json")
    found = {name: text[name]["value"] for name in ("loss", "bits_per_byte")}
    if (run / "completion.json").is_file():
        written = _read(run / "completion.json")
        found |= {name: written[name]["value"] for name in ("valid_lines", "next_line", "whole")}
    for name in ("drafts", "probe"):
        if (run / f"{name}.json").is_file():
            found[name] = _read(run / f"{name}.json")["tokens_per_forward"]
    clock = [line["cpu_s"] for line in curve(run) if "cpu_s" in line]
    return found | ({"cpu_s": clock[-1]} if clock else {})


def curve(run: Path) -> list[dict[str, float]]:
    """The lines of a run's log."""
    path = run / "log.jsonl"
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def _row(name: str, runs: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    seeds, base = runs[name], CONTINUED.get(name, BASE)
    row: dict[str, Any] = {"name": name, "seeds": list(seeds), "base": base if base != name else None, "figures": {}}
    for figure in FIGURES:
        values = {seed: found[figure] for seed, found in seeds.items() if figure in found}
        if not values:
            continue
        pairs = [
            value - other[seed][figure]
            for other in [runs.get(base, {})]
            for seed, value in values.items()
            if base != name and figure in other.get(seed, {})
        ]
        row["figures"][figure] = {"mean": sum(values.values()) / len(values), "values": values} | (
            {"against": interval(pairs)} if pairs else {}
        )
    return row


def interval(values: Sequence[float]) -> dict[str, Any]:
    """The mean, and Student's interval of 95 % (None for one value)."""
    n, mean = len(values), sum(values) / len(values)
    if n == 1:
        return {"value": mean, "interval": None}
    spread = sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    half = QUANTILES[min(n - 1, len(QUANTILES)) - 1] * spread
    return {"value": mean, "interval": [mean - half, mean + half]}


# -- for people -----------------------------------------------------------------------------------------------------
def study_table(report: Mapping[str, Any]) -> str:
    """A line for each objective: means over seeds, and the difference of the loss."""
    title = [
        "objective",
        "seeds",
        "loss",
        "against",
        "bits a byte",
        "valid lines",
        "next line",
        "drafts",
        "probe",
        "CPU",
    ]
    return aligned(title, [_cells(row) for row in report["rows"]])


def _cells(row: Mapping[str, Any]) -> list[str]:
    figures = row["figures"]

    def mean(name: str, form: str) -> str:
        return format(figures[name]["mean"], form) if name in figures else "-"

    cells = [row["name"], str(len(row["seeds"])), mean("loss", ".4f"), _difference(row), mean("bits_per_byte", ".3f")]
    cells += [mean(name, ".1%") for name in ("valid_lines", "next_line")]
    return [*cells, mean("drafts", ".2f"), mean("probe", ".2f"), mean("cpu_s", ",.0f")]


def _difference(row: Mapping[str, Any]) -> str:
    found = row["figures"]["loss"].get("against")
    if found is None:
        return "-"
    ends = "" if found["interval"] is None else " [{:+.4f}, {:+.4f}]".format(*found["interval"])
    return f"{found['value']:+.4f}{ends} ({row['base']})"
