"""Codecs side by side, by what a talker makes of their codes: what each run of a study left in its folder.

A study's folder holds ``<codec>/codec.json`` (``eval codec``) and ``<codec>/g<frames of a group>/<seed>``, each with
``talker/log.jsonl`` of its training, ``speech.json`` (``eval speech``) and ``drafts.json`` (``eval drafts``), as
``recipes/tokenizer_study/run.sh`` makes them. What is not there yet is left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import log
from pathlib import Path
from typing import Any

import torch

from speech_mtp import plugins
from speech_mtp.evaluation.intervals import estimate, ratio
from speech_mtp.evaluation.objective_study import curve
from speech_mtp.evaluation.tables import aligned, form, within

BASE = "coupled"
"""The codec that others are compared with, unless another is named."""
DEFINITIONS = {
    "round_trip_wer": "word errors of decoded recordings less those of the recordings, as a fraction of the words",
    "round_trip_dnsmos": "overall DNSMOS of decoded recordings",
    "equal": "share of the first codebook's codes that stay when pitch and formants change, the timing being the same",
    "entropy": "bits a second that the codes of all streams cost a small probe that knows phonemes and position",
    "talker": "held-out cross entropy of the talker, control included, in bits a second of speech",
    "wer": "word errors of the talker over the words of all sentences and seeds",
    "against": "the difference to the base, paired by sentence and seed",
    "success": "share of sentences that end by themselves with their last word",
    "first_code": "share of positions where a draft head guesses control and first code of the next group, by head",
    "first_frame": "the same of the whole first frame",
    "in_a_row": "channels that are right in a row, by depth",
    "interval": "holds 95 % of 1,000 bootstrap samples of the sentences",
}


def study(folder: Path, base: str = BASE) -> dict[str, Any]:
    """The rows of a study, as plain JSON; that of the codec ``base``, which others are compared with, comes first.
    Raises ValueError for a folder without any codec that was measured."""
    codecs = {path.parent.name: _codec_report(path) for path in sorted(folder.glob("*/codec.json"))}
    if not codecs:
        raise ValueError(f"{folder} holds no codec of a study: none of its folders has codec.json; check the path.")
    if base not in (BASE, *codecs):
        raise ValueError(f"The study has no codec {base!r} to compare with; {plugins.nearest(base, codecs)}.")
    _check_recordings(codecs)
    order = [base] * (base in codecs) + [name for name in codecs if name != base]
    spoken = {name: _talkers(folder / name, codecs[name]) for name in order}
    _check_judge(spoken)
    rows = [{"name": name, "codec": _codec(codecs[name]), "groups": _groups(name, spoken, base)} for name in order]
    return {"base": base, "rows": rows, "definitions": DEFINITIONS}


def _check_recordings(codecs: Mapping[str, Mapping[str, Any]]) -> None:
    """Round trips of other recordings must not be set side by side."""
    counted = {name: _recordings(report) for name, report in codecs.items()}
    first = next(iter(counted))
    for name, found in counted.items():
        if found != counted[first]:
            raise ValueError(
                f"{first} was measured on {counted[first]}, and {name} on {found}; measure both on the same "
                "recordings, with the same --per-voice and --opinions of eval codec."
            )


def _recordings(report: Mapping[str, Any]) -> str:
    number = report.get("utterances", "?")
    seconds = f"{report['seconds']:.0f} s" if "seconds" in report else "? s"
    voices = ", ".join(report.get("voices", "?"))
    return f"{number} recordings of {voices} ({seconds}), opinions of {report.get('opinions', number)}"


def _check_judge(spoken: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]]) -> None:
    """Word errors of different judges must not be set side by side."""
    runs = [run for groups in spoken.values() for seeds in groups.values() for run in seeds.values()]
    judges = sorted({str(run["recogniser"]) for run in runs if run.get("recogniser")})
    if len(judges) > 1:
        raise ValueError(f"Words were heard by {' and '.join(judges)}; measure all talkers with one (--recogniser).")


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def _codec_report(path: Path) -> dict[str, Any]:
    report = _read(path)
    missing = next((name for name in ("frame_rate_hz", "streams") if name not in report), None)
    if missing:
        raise ValueError(f"{path} does not say {missing}; make it again with eval codec, part quality.")
    return report


def _codec(report: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {name: report[name] for name in ("bits_per_second", "frame_rate_hz") if name in report}
    if trip := report.get("round_trip"):
        found |= {"round_trip_wer": trip["wer"] - trip["wer_original"], "round_trip_dnsmos": trip["dnsmos"]}
    if views := report.get("views"):
        found["equal"] = next(iter(views["both"].values()))[0]  # the first codebook of the first stream
    if probes := report.get("probes"):
        costs = [stream["given phonemes"]["bits_per_second"] for stream in probes["entropy"].values()]
        found["entropy"] = sum(costs)
    return found


def _talkers(folder: Path, codec: Mapping[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """By group and seed, what each talker gave."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for run in sorted(folder.glob("g*/*")):
        if not run.parent.name[1:].isdecimal():
            continue
        given = _talker(run, codec, int(run.parent.name[1:]))
        if given:
            found.setdefault(run.parent.name, {})[run.name] = given
    return found


def _talker(run: Path, codec: Mapping[str, Any], group: int) -> dict[str, Any]:
    given: dict[str, Any] = {}
    cost = _cross_entropy(run / "talker", float(codec["frame_rate_hz"]), group)
    if cost is not None:
        given["talker"] = cost
    if (run / "speech.json").is_file():
        given |= _spoken(run / "speech.json")
    if (run / "drafts.json").is_file():
        given["drafts"] = _drafts(_read(run / "drafts.json"), sum(map(len, codec["streams"].values())))
    return given


def _spoken(path: Path) -> dict[str, Any]:
    """Means over voices, and the errors and words of each sentence."""
    report = _read(path)
    means = {"success": "success_rate", "dnsmos": "dnsmos", "similarity": "similarity"}
    try:
        voices = report["voices"]
        found: dict[str, Any] = {
            name: sum(values) / len(values)
            for name, key in means.items()
            if (values := [voice[key] for voice in voices.values() if voice[key] is not None])
        }
        return {**found, "errors": _errors(voices), "recogniser": report.get("recogniser")}
    except KeyError as error:
        raise ValueError(f"{path} does not say {error}; make it again (eval speech).") from error


def _errors(voices: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    """Errors and words of each sentence, all voices together."""
    found: dict[str, tuple[int, int]] = {}
    for row in (row for voice in voices.values() for row in voice["rows"]):
        errors, words = found.get(row["text"], (0, 0))
        found[row["text"]] = (errors + row["errors"], words + row["words"])
    return found


def _cross_entropy(run: Path, rate: float, group: int) -> float | None:
    """Bits a second of speech by the last held-out terms of a talker's log, nats a token each."""
    measured = [line for line in curve(run) if "dev/stream0" in line]
    if not measured:
        return None
    last = measured[-1]
    streams = sum(value for name, value in last.items() if name.startswith("dev/stream"))
    return (streams + last["dev/control"] / group) * rate / log(2)


def _drafts(report: Mapping[str, Any], books: int) -> dict[str, Any]:
    """By head; the first temperature that was measured."""
    found = {}
    for head, given in report["heads"].items():
        depths = next(iter(given["agreement"].values()))
        right = depths["1"]["right"]
        found[Path(head).name] = {  # they were named by their folders, which differ by seed
            "first_code": right[1],
            "first_frame": right[min(books, len(right) - 1)],
            "in_a_row": [depth["channels_in_a_row"] for depth in depths.values()],
        }
    return found


def _groups(name: str, spoken: Mapping[str, Mapping[str, Mapping[str, Any]]], base: str) -> dict[str, Any]:
    found = {}
    for group, seeds in spoken[name].items():
        row: dict[str, Any] = {"seeds": list(seeds)}
        for figure in ("talker", "success", "dnsmos", "similarity"):
            values = [given[figure] for given in seeds.values() if given.get(figure) is not None]
            if values:
                row[figure] = sum(values) / len(values)
        sums = _sums([given.get("errors", {}) for given in seeds.values()])
        if sums:
            row["wer"] = estimate(torch.tensor(sums), ratio)
        against = [] if name == base else _paired(seeds, spoken.get(base, {}).get(group, {}))
        if against:
            row["against"] = estimate(torch.tensor(against), lambda t: (t[..., 0] - t[..., 1]) / t[..., 2])
        heads = [head for given in seeds.values() for head in given.get("drafts", {}).items()]
        row["drafts"] = {head: _mean([g for name, g in heads if name == head]) for head, _ in heads}
        found[group] = row
    return found


def _paired(seeds: Mapping[str, Mapping[str, Any]], base: Mapping[str, Mapping[str, Any]]) -> list[list[int]]:
    """Errors here, errors of the base, and words, of each sentence that both have spoken with the same seeds."""
    found = []
    for seed, given in seeds.items():
        theirs, mine = base.get(seed, {}).get("errors", {}), given.get("errors", {})
        found.append({one: (mine[one][0], theirs[one][0], mine[one][1]) for one in mine if one in theirs})
    return _sums(found)


def _sums(seeds: Sequence[Mapping[str, tuple[int, ...]]]) -> list[list[int]]:
    """The counts of each sentence, summed over seeds: a sentence is what the bootstrap draws."""
    found: dict[str, list[int]] = {}
    for seed in seeds:
        for one, counts in seed.items():
            found[one] = [a + b for a, b in zip(found.get(one, [0] * len(counts)), counts, strict=True)]
    return list(found.values())


def _mean(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    depths = zip(*(one["in_a_row"] for one in found), strict=False)  # as deep as all were measured
    return {
        **{name: sum(one[name] for one in found) / len(found) for name in ("first_code", "first_frame")},
        "in_a_row": [sum(depth) / len(depth) for depth in depths],
    }


# -- for people -----------------------------------------------------------------------------------------------------
def study_table(report: Mapping[str, Any]) -> str:
    """Two tables: a line for each codec, and a line for each codec and group."""
    title = ["codec", "bit/s", "round trip WER", "DNSMOS", "equal codes", "bit/s, phonemes known"]
    codecs = [[row["name"], *_codec_cells(row["codec"])] for row in report["rows"]]
    title_2 = ["codec", "frames", "seeds", "talker, bit/s", "WER", "against", "success", "DNSMOS", "similarity"]
    title_2 += ["first code", "first frame"]
    talkers = [
        [row["name"], group[1:], *_talker_cells(given)]
        for row in report["rows"]
        for group, given in row["groups"].items()
    ]
    return "\n\n".join([aligned(title, codecs), *([aligned(title_2, talkers)] if talkers else [])])


def _codec_cells(found: Mapping[str, Any]) -> list[str]:
    equal = found.get("equal")
    return [
        form(found.get("bits_per_second"), ".0f"),
        form(found.get("round_trip_wer"), "+.2%"),
        form(found.get("round_trip_dnsmos"), ".2f"),
        "-" if equal is None else within(equal, ".1%"),
        form(found.get("entropy"), ".0f"),
    ]


def _talker_cells(found: Mapping[str, Any]) -> list[str]:
    heads = found["drafts"].values()
    best = {name: max((head[name] for head in heads), default=None) for name in ("first_code", "first_frame")}
    return [
        str(len(found["seeds"])),
        form(found.get("talker"), ".1f"),
        within(found["wer"], ".2%") if "wer" in found else "-",
        within(found["against"], "+.2%") if "against" in found else "-",
        form(found.get("success"), ".1%"),
        form(found.get("dnsmos"), ".2f"),
        form(found.get("similarity"), ".3f"),
        form(best["first_code"], ".1%"),
        form(best["first_frame"], ".1%"),
    ]
