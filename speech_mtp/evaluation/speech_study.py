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
    "runs": "every voice of every report",
    "wer": "word errors over the words of all runs",
    "against": "the difference to the first contender: of the mean errors of a run over its words, paired by sentence",
    "by": "word errors by other recognisers",
    "of": "word errors by file of sentences, mean over runs",
    "success_rate": "share of utterances that end by themselves with their last word, mean over runs",
    "dnsmos": "overall DNSMOS, mean over runs",
    "distill_mos": "score of DistillMOS, mean over runs",
    "similarity": "cosine of speaker vectors, mean over runs; none where runs were compared with different things",
    "rtf": "seconds of computing a second of sound, mean over runs",
    "ttfa_ms_p50": "milliseconds until the first sound: mean over runs of their medians",
    "interval": "holds 95 % of 1,000 bootstrap samples of the sentences",
}
MEANS = ("success_rate", "dnsmos", "distill_mos", "similarity", "rtf", "ttfa_ms_p50")


def compare(contenders: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """A row for each contender of its reports, as plain JSON; every voice of every report is a run.

    Raises ValueError for a file that is no such report, for other sentences, words that another recogniser heard, and
    opinions of other numbers of sentences: none of that can be set side by side.
    """
    runs = {name: [run for path in paths for run in _runs(path)] for name, paths in contenders.items()}
    _check_alike([run for found in runs.values() for run in found])
    first, *_ = runs
    rows = [
        {
            "name": name,
            "reports": [str(path) for path in contenders[name]],
            **_row(found, [] if name == first else runs[first]),
        }
        for name, found in runs.items()
    ]
    one = runs[first][0]
    about = {name: one[name] for name in ("recogniser", "opinions")}
    return {**about, "sentences": len(one["rows"]), "rows": rows, "definitions": DEFINITIONS}


def _runs(path: Path) -> list[dict[str, Any]]:
    try:
        report = json.loads(path.read_text("utf-8"))
        found = [
            {**figures, "voice": voice, "path": path, "recogniser": report["recogniser"]}
            for voice, figures in report["voices"].items()
        ]
        whole = all(
            run["rows"] and all({"text", "errors", "words"} <= row.keys() for row in run["rows"]) for run in found
        )
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}.") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no report of eval speech; check the path, or make it again.") from error
    if not found or not whole:
        raise ValueError(f"{path} holds no voice with its sentences; make it again with eval speech.")
    for run in found:
        run["opinions"] = sum(row.get("dnsmos") is not None for row in run["rows"])
    return found


def _check_alike(runs: Sequence[Mapping[str, Any]]) -> None:
    first = runs[0]
    for run in runs:
        where = f"{run['path']} and {first['path']}"
        if _texts(run) != _texts(first):
            raise ValueError(f"{where} are of other sentences, or in another order; let both say the same.")
        if run["recogniser"] != first["recogniser"]:
            raise ValueError(
                f"{where} were heard by {run['recogniser']} and {first['recogniser']}; measure both with one "
                "(--recogniser)."
            )
        if run["opinions"] != first["opinions"]:
            raise ValueError(
                f"{where} have opinions of {run['opinions']} and {first['opinions']} sentences; measure both with the "
                "same --opinions."
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
    found["by"] = {
        name: _rate([[row["others"][name] for row in run["rows"]] for run in runs])
        for name in runs[0].get("others", {})
        if all(name in run.get("others", {}) for run in runs)
    }
    found["of"] = {
        name: sum(run["files"][name]["wer"] for run in runs) / len(runs)
        for name in runs[0].get("files", {})
        if all(name in run.get("files", {}) for run in runs)
    }
    found["similarity_to"] = sorted({run["similarity_to"] for run in runs if "similarity_to" in run})
    alike = len(found["similarity_to"]) <= 1
    return found | {name: _mean(runs, name) if alike or name != "similarity" else None for name in MEANS}


def _mean(runs: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """None where a run has no such figure."""
    values = [run.get(name) for run in runs]
    return None if None in values else sum(value for value in values if value is not None) / len(values)


def _rate(runs: Iterable[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """A sentence is what the bootstrap draws, in all runs at once."""
    sums = torch.tensor([[(row["errors"], row["words"]) for row in rows] for rows in runs]).sum(0)
    return estimate(sums, ratio)


def _mean_errors(runs: Sequence[Mapping[str, Any]]) -> list[float]:
    """Of each sentence, over the runs."""
    each = zip(*([row["errors"] for row in run["rows"]] for run in runs), strict=True)
    return [sum(errors) / len(runs) for errors in each]


def comparison_table(report: Mapping[str, Any]) -> str:
    """A line for each contender. Similarities stand there if all are to the same."""
    rows = report["rows"]
    by, of = ([*dict.fromkeys(name for row in rows for name in row[key])] for key in ("by", "of"))
    title = [
        "",
        "voices",
        "runs",
        "WER",
        "against",
        *(f"WER by {name}" for name in by),
        *(f"WER of {name}" for name in of),
    ]
    title += ["ends with its last word", "DNSMOS", "DistillMOS", "similarity", "RTF", "first sound, ms"]
    alike = len({to for row in rows for to in row["similarity_to"]}) <= 1
    return aligned(title, [_cells(row, by, of, alike) for row in rows])


def _cells(row: Mapping[str, Any], by: Sequence[str], of: Sequence[str], alike: bool) -> list[str]:
    return [
        row["name"],
        " ".join(row["voices"]),
        str(row["runs"]),
        within(row["wer"], ".2%"),
        within(row["against"], "+.2%") if "against" in row else "-",
        *(within(row["by"][name], ".2%") if name in row["by"] else "-" for name in by),
        *(form(row["of"].get(name), ".2%") for name in of),
        form(row["success_rate"], ".1%"),
        form(row["dnsmos"], ".2f"),
        form(row["distill_mos"], ".2f"),
        form(row["similarity"] if alike else None, ".3f"),
        form(row["rtf"], ".3f"),
        form(row["ttfa_ms_p50"], ".0f"),
    ]
