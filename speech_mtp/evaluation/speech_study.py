"""Reports of ``eval speech`` side by side: models, teachers and other systems that have said the same sentences."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from speech_mtp.evaluation.intervals import estimate, ratio
from speech_mtp.evaluation.tables import aligned, form, within

DEFINITIONS = {
    "wer": "word errors over the words of all voices and runs",
    "against": "the difference to the first contender, paired by sentence: of the mean errors of a run",
    "others": "word errors by other recognisers",
    "files": "word errors by file of sentences",
    "success": "share of utterances that end by themselves with their last word",
    "rtf": "seconds of computing a second of sound",
    "ttfa_ms_p50": "milliseconds until the first sound, median",
    "interval": "holds 95 % of 1,000 bootstrap samples of the sentences",
}
MEANS = ("success_rate", "dnsmos", "distill_mos", "similarity", "rtf", "ttfa_ms_p50")


def compare(contenders: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """A row for each contender of its reports, as plain JSON; every voice of every report is a run.

    Raises ValueError for a file that is no such report, for sentences that a run lacks, and for words that were
    judged by others: none of that can be set side by side.
    """
    runs = {name: [run for path in paths for run in _runs(path)] for name, paths in contenders.items()}
    _check_alike(runs)
    first, *_ = runs
    rows = [{"name": name, **_row(found, [] if name == first else runs[first])} for name, found in runs.items()]
    return {"rows": rows, "definitions": DEFINITIONS}


def _runs(path: Path) -> list[dict[str, Any]]:
    try:
        report = json.loads(path.read_text("utf-8"))
        voices = report["voices"]
        return [{**voices[name], "voice": name, "path": path, "recogniser": report["recogniser"]} for name in voices]
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no report of eval speech; check the path, or make it again.") from error


def _check_alike(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    every = [run for found in runs.values() for run in found]
    first = every[0]
    for run in every:
        if _texts(run) != _texts(first):
            raise ValueError(f"{run['path']} and {first['path']} are of other sentences; let both say the same.")
        if run["recogniser"] != first["recogniser"]:
            raise ValueError(
                f"Words were heard by {first['recogniser']} in {first['path']} and by {run['recogniser']} in "
                f"{run['path']}; measure both with one (--recogniser)."
            )


def _texts(run: Mapping[str, Any]) -> list[str]:
    return [row["text"] for row in run["rows"]]


def _row(runs: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"voices": list(dict.fromkeys(run["voice"] for run in runs)), "runs": len(runs)}
    found["wer"] = _rate([run["rows"] for run in runs])
    if base:
        mine, theirs = (_mean_errors(side) for side in (runs, base))
        words = [row["words"] for row in runs[0]["rows"]]
        sums = torch.tensor(list(zip(mine, theirs, words, strict=True)))
        found["against"] = estimate(sums, lambda t: (t[..., 0] - t[..., 1]) / t[..., 2])
    found["others"] = {
        name: _rate([[row["others"][name] for row in run["rows"]] for run in runs])
        for name in runs[0].get("others", {})
        if all(name in run.get("others", {}) for run in runs)
    }
    found["files"] = {
        name: sum(run["files"][name]["wer"] for run in runs) / len(runs)
        for name in runs[0].get("files", {})
        if all(name in run.get("files", {}) for run in runs)
    }
    for name in MEANS:
        values = [run[name] for run in runs if run.get(name) is not None]
        found[name] = sum(values) / len(values) if values else None
    return found


def _rate(runs: Iterable[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """A sentence is what the bootstrap draws, in all runs at once."""
    sums = torch.tensor([[(row["errors"], row["words"]) for row in rows] for rows in runs]).sum(0)
    return estimate(sums, ratio)


def _mean_errors(runs: Sequence[Mapping[str, Any]]) -> list[float]:
    """Of each sentence, over the runs."""
    each = zip(*([row["errors"] for row in run["rows"]] for run in runs), strict=True)
    return [sum(errors) / len(runs) for errors in each]


def comparison_table(report: Mapping[str, Any]) -> str:
    """A line for each contender."""
    rows = report["rows"]
    others, files = ([*dict.fromkeys(name for row in rows for name in row[key])] for key in ("others", "files"))
    title = ["", "voices", "runs", "WER", "against", *(f"WER, {name}" for name in (*others, *files))]
    title += ["ends with its last word", "DNSMOS", "DistillMOS", "similarity", "RTF", "first sound, ms"]
    return aligned(title, [_cells(row, others, files) for row in rows])


def _cells(row: Mapping[str, Any], others: Sequence[str], files: Sequence[str]) -> list[str]:
    heard = [within(row["others"][name], ".2%") if name in row["others"] else "-" for name in others]
    return [
        row["name"],
        " ".join(row["voices"]),
        str(row["runs"]),
        within(row["wer"], ".2%"),
        within(row["against"], "+.2%") if "against" in row else "-",
        *heard,
        *(form(row["files"].get(name), ".2%") for name in files),
        form(row["success_rate"], ".1%"),
        form(row["dnsmos"], ".2f"),
        form(row["distill_mos"], ".2f"),
        form(row["similarity"], ".3f"),
        form(row["rtf"], ".3f"),
        form(row["ttfa_ms_p50"], ".0f"),
    ]
