"""Tables of plain text: what their cells look like, and those of text decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from speech_mtp.evaluation.text_bench import DEFINITIONS


def speed_table(report: Mapping[str, Any]) -> str:
    """What the columns mean, and a line for each of ours and of the peers."""
    bases = list(report["fastest"])
    title = ["head", "rule", "dtype", "tokens/forward", "acceptance", "tokens/s", "reading", "decoding"]
    title += [f"x {base.replace('_', ' ')}" for base in bases] + ["identical", "MB"]
    lines = [[*_who(row), *_speed(row, bases)] for row in (*report["rows"], *report["peers"])]
    legend = [f"{name}: {meaning}." for name, meaning in DEFINITIONS.items()]
    return "\n".join(
        [*legend, f"{report['questions']} questions, {report['requests']} requests.", "", aligned(title, lines)]
    )


def identity_table(report: Mapping[str, Any]) -> str:
    """A line for each pair: answers that are the same, ties, and faults, against each reference."""
    title = [
        "head",
        "rule",
        "dtype",
        "tokens",
        "same as vanilla",
        "ties",
        "faults",
        "same as transformers",
        "ties",
        "faults",
    ]
    lines = []
    for row in report["rows"]:
        counts: list[str] = []
        for name in ("vanilla", "transformers"):
            found = row.get(name)
            counts += [str(len(v) if isinstance(v, list) else v) for v in _counts(found)] if found else ["-"] * 3
        lines.append([*_who(row), str(row["tokens"]), *counts])
    return "\n".join([f"{report['prompts']} prompts.", "", aligned(title, lines)])


def aligned(title: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest entry."""
    every = [title, *lines]
    widths = [max(len(line[i]) for line in every) for i in range(len(title))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in every
    )


def form(value: float | None, spec: str) -> str:
    """A figure, or ``-`` where there is none."""
    return "-" if value is None else format(value, spec)


def within(figure: Mapping[str, Any], spec: str) -> str:
    """An estimate (:func:`speech_mtp.evaluation.intervals.estimate`): its value and, in brackets, its interval."""
    low, high = (format(end, spec) for end in figure["interval"])
    return f"{format(figure['value'], spec)} [{low}, {high}]"


def _counts(found: Mapping[str, Any]) -> list[Any]:
    return [found["identical"], found["ties"], found["mismatches"]]


def _who(row: Mapping[str, Any]) -> list[str]:
    name = (row["head"] or "-") if row["rule"] else row["program"]
    return [name, (row["rule"] or "-") + ("" if row["lossless"] else " (lossy)"), row["dtype"]]


def _speed(row: Mapping[str, Any], bases: Sequence[str]) -> list[str]:
    gained, memory = row["tokens_per_forward"], row["peak_memory_mb"]
    cells = ["-" if gained is None else f"{gained:.2f}", " ".join(f"{a:.2f}" for a in row["acceptance"]) or "-"]
    paces = [row["tokens_per_s"], row["reading"]["tokens_per_s"], row["decoding"]["tokens_per_s"]]
    cells += ["-" if pace is None else f"{pace:.1f}" for pace in paces]
    for base in bases:
        low, high = row[f"speedup_over_{base}_interval"]
        cells.append(f"{row[f'speedup_over_{base}']:.2f} [{low:.2f}, {high:.2f}]")
    return [*cells, f"{100 * row['identical_fraction']:.1f} %", "-" if memory is None else f"{memory:.0f}"]
