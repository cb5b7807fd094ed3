"""Pictures of results: training curves from ``log.jsonl``, how an utterance looks, how fast text is made."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from speech_mtp import plugins
from speech_mtp.evaluation.objective_study import ELSEWHERE, curve
from speech_mtp.files import replacing


def training_curves(log: Path, names: list[str], out: Path) -> None:
    """Training terms (thin) and their ``dev/`` twins (dots) over the steps of ``log``, one panel each, as PNG."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    missing = [name for name in names if not any(name in line for line in lines)]
    if missing:
        raise ValueError(f"{log} has no term {missing[0]!r}; {plugins.nearest(missing[0], lines[0])}")
    pyplot = _pyplot()
    figure, panels = pyplot.subplots(1, len(names), figsize=(4 * len(names), 3), squeeze=False)
    for panel, name in zip(panels[0], names, strict=True):
        for key, style in ((name, "-"), (f"dev/{name}", "o"), (f"dev/blank/{name}", "x")):
            points = [(line["step"], line[key]) for line in lines if key in line]
            if points:
                panel.plot(*zip(*points, strict=True), style, label=key, linewidth=0.8, markersize=4)
        panel.set_xlabel("step")
        panel.legend()
    _save(figure, out)


def service_load(rows: list[dict[str, Any]], out: Path) -> None:
    """Rows of ``bench service``: time to the first sound (median and 95th percentile) and gaps per minute of sound
    over the number of clients, a line for each kind, as PNG."""
    pyplot = _pyplot()
    figure, (first, gaps) = pyplot.subplots(1, 2, figsize=(9, 3.2))
    for color, kind in enumerate(dict.fromkeys(row["kind"] for row in rows)):
        found = [row for row in rows if row["kind"] == kind and row["first_audio_ms_p50"] is not None]
        streams = [row["streams"] for row in found]
        for key, style in (("first_audio_ms_p50", "-o"), ("first_audio_ms_p95", "--x")):
            label = f"{kind}, {key[-3:]}"
            first.plot(streams, [row[key] for row in found], style, color=f"C{color}", label=label, linewidth=1)
        rate = [60 * row["gaps"] / max(row["sound_s"], 1e-3) for row in found]
        gaps.plot(streams, rate, "-o", color=f"C{color}", label=kind, linewidth=1)
    for panel, title in ((first, "first sound, ms"), (gaps, "gaps in a minute of sound")):
        panel.set_xlabel("clients")
        panel.set_title(title, fontsize=10)
        panel.set_xscale("log", base=2)
        panel.legend(fontsize=7)
    _save(figure, out)


def objective_curves(report: dict[str, Any], folder: Path, out: Path) -> None:
    """Of a study (:mod:`speech_mtp.evaluation.objective_study`) in ``folder``: held-out loss over steps and over
    processor seconds, a line for each objective and seed but for those that held another text out, and the loss over
    tokens a forward, as PNG."""
    pyplot = _pyplot()
    figure, (steps, seconds, gain) = pyplot.subplots(1, 3, figsize=(17, 5))
    for number, row in enumerate(report["rows"]):
        color, name = f"C{number % 10}", row["name"]
        style = "-" if number < 10 else "--"
        for seed in row["seeds"] if name not in ELSEWHERE else ():
            points, cpu = [], 0.0
            for line in curve(folder / name / seed):
                cpu = line.get("cpu_s", cpu)
                if "dev/loss" in line:
                    points.append((line["step"] + 1, cpu, line["dev/loss"]))
            label = name if seed == row["seeds"][0] else None
            for panel, column in ((steps, 0), (seconds, 1)):
                panel.plot([p[column] for p in points], [p[2] for p in points], style, color=color, label=label, lw=0.8)
        for kind, mark in (("drafts", "o"), ("probe", "x")):
            if kind in row["figures"]:
                place = row["figures"][kind]["mean"], row["figures"]["loss"]["mean"]
                gain.plot(*place, mark, color=color)
                gain.annotate(name, place, fontsize=6)
    for panel, title in ((steps, "steps"), (seconds, "processor seconds")):
        panel.set_xlabel(title)
        panel.set_ylabel("held-out nats a token")
        panel.set_yscale("log")
    gain.set_xlabel("tokens a forward (o: own head, x: probe)")
    gain.set_ylabel("held-out nats a token")
    steps.legend(fontsize=7)
    _save(figure, out)


def tokenizer_bars(report: dict[str, Any], out: Path) -> None:
    """Of a study of codecs (:mod:`speech_mtp.evaluation.tokenizer_study`): what codes cost when the phonemes are known,
    what they cost a talker, its word errors and what draft heads guess, a bar for each codec and group, as PNG."""
    pyplot = _pyplot()
    names = [row["name"] for row in report["rows"]]
    groups = list(dict.fromkeys(group for row in report["rows"] for group in row["groups"]))
    figure, panels = pyplot.subplots(1, 4, figsize=(18, 0.5 * len(names) + 2), sharey=True)
    at = range(len(names))
    entropies = [row["codec"].get("entropy", 0.0) for row in report["rows"]]
    panels[0].barh(at, entropies, color="0.6")
    panels[0].set_yticks(at, names)
    panels[0].invert_yaxis()
    panels[0].set_xlabel("bits a second, phonemes known")
    height = 0.8 / max(1, len(groups))
    for number, group in enumerate(groups):
        found = [row["groups"].get(group, {"drafts": {}}) for row in report["rows"]]
        places = [y - 0.4 + (number + 0.5) * height for y in at]
        style = {"height": height, "color": f"C{number}", "label": f"{group[1:]} frames"}
        panels[1].barh(places, [one.get("talker", 0.0) for one in found], **style)
        wers = [one.get("wer", {"value": 0.0, "interval": [0.0, 0.0]}) for one in found]
        ends = [[max(0.0, (w["value"] - w["interval"][0])), max(0.0, w["interval"][1] - w["value"])] for w in wers]
        errors = [[100 * low for low, _ in ends], [100 * high for _, high in ends]]
        panels[2].barh(places, [100 * w["value"] for w in wers], xerr=errors, **style)
        first = [max((head["first_frame"] for head in one["drafts"].values()), default=0.0) for one in found]
        panels[3].barh(places, [100 * share for share in first], **style)
    titles = ("the talker's bits a second", "word errors, %", "first frame guessed, %")
    for panel, title in zip(panels[1:], titles, strict=True):
        panel.set_xlabel(title)
    if groups:
        panels[1].legend(fontsize=8)
    _save(figure, out)


def corpus_distributions(found: dict[str, Any], out: Path) -> None:
    """Histograms of ``seconds``, ``chars_per_second`` and ``level_dbfs`` (may be empty) of the utterances of a corpus,
    and the ``minutes`` of its voices, the 40 largest, as PNG."""
    pyplot = _pyplot()
    figure, panels = pyplot.subplots(1, 4, figsize=(16, 3.6))
    titles = {"seconds": "seconds", "chars_per_second": "characters a second", "level_dbfs": "level as recorded, dBFS"}
    for panel, (key, title) in zip(panels, titles.items(), strict=False):
        panel.hist(found[key], bins=40)
        panel.set_xlabel(title)
        panel.set_ylabel("utterances")
    voices = list(found["minutes"].items())[:40]
    panels[3].barh([voice for voice, _ in voices][::-1], [minutes for _, minutes in voices][::-1])
    panels[3].tick_params(axis="y", labelsize=8 if len(voices) < 15 else 5)
    panels[3].set_xlabel("minutes")
    _save(figure, out)


def spectrograms(waves: dict[str, Tensor], sample_rate: int, out: Path) -> None:
    """Mel spectrograms of named waves ``[S]``, one below the other, as PNG."""
    import librosa

    display: Any = import_module("librosa.display")
    pyplot = _pyplot()
    figure, panels = pyplot.subplots(len(waves), 1, figsize=(9, 2.2 * len(waves)), squeeze=False)
    for panel, (name, wave) in zip(panels[:, 0], waves.items(), strict=True):
        mel = librosa.feature.melspectrogram(y=wave.numpy(), sr=sample_rate, hop_length=240, n_mels=100)
        image: Any = librosa.power_to_db(mel, ref=mel.max())
        display.specshow(image, sr=sample_rate, hop_length=240, x_axis="time", y_axis="mel", ax=panel)
        panel.set_title(name, fontsize=9)
    _save(figure, out)


def speed_bars(report: dict[str, Any], out: Path) -> None:
    """Speed-up over plain decoding with its interval, and tokens per forward, of a report of ``bench text``, as PNG."""
    rows = [*report["rows"], *report["peers"]][::-1]
    names = [f"{row['head'] or row['program']} {row['rule'] or ''} {row['dtype']}" for row in rows]
    middle = [row["speedup_over_vanilla"] for row in rows]
    ends = [row["speedup_over_vanilla_interval"] for row in rows]
    low = [max(0.0, m - a) for m, (a, _) in zip(middle, ends, strict=True)]
    high = [max(0.0, b - m) for m, (_, b) in zip(middle, ends, strict=True)]
    pyplot = _pyplot()
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 1 + 0.3 * len(rows)), sharey=True)
    panels[0].barh(names, middle, xerr=[low, high], color=["C0" if row["rule"] else "C7" for row in rows], capsize=2)
    panels[0].axvline(1, color="black", linewidth=0.8)
    panels[0].set_xlabel("x plain decoding")
    panels[1].barh(names, [row["tokens_per_forward"] or 0 for row in rows], color="C1")
    panels[1].set_xlabel("tokens per forward")
    _save(figure, out)


def predictability_bars(report: dict[str, Any], out: Path) -> None:
    """Equal codes by view (first codebook of each stream) and bits per second by what is known, as PNG."""
    pyplot = _pyplot()
    parts = [name for name in ("views", "probes") if report.get(name)]
    if not parts:
        raise ValueError("A picture shows the parts 'views' and 'probes', but the report has neither; ask for one.")
    figure, panels = pyplot.subplots(1, len(parts), figsize=(6.5 * len(parts), 3.6), squeeze=False)
    for panel, part in zip(panels[0], parts, strict=True):
        if part == "views":
            groups = {name: {s: 100 * b[0]["value"] for s, b in found.items()} for name, found in report[part].items()}
            panel.set_xlabel("equal codes, %")
        else:
            groups = _bits_by_condition(report[part]["entropy"])
            panel.set_xlabel("bits per second")
        _grouped_bars(panel, groups)
    _save(figure, out)


def _bits_by_condition(entropy: dict[str, Any]) -> dict[str, dict[str, float]]:
    groups: dict[str, dict[str, float]] = {}
    for stream, found in entropy.items():
        for name, figures in found.items():
            if "bits_per_second" in figures:
                groups.setdefault(name, {})[stream] = figures["bits_per_second"]
    return groups


def _grouped_bars(panel: Any, groups: dict[str, dict[str, float]]) -> None:
    """A group of horizontal bars for each entry, the first on top."""
    series = list(dict.fromkeys(name for group in groups.values() for name in group))
    height = 0.8 / len(series)
    for i, name in enumerate(series):
        at = [j + i * height for j in range(len(groups))]
        bars = panel.barh(at, [group.get(name, 0.0) for group in groups.values()], height, label=name)
        panel.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
    panel.set_yticks([j + 0.4 - height / 2 for j in range(len(groups))], list(groups))
    panel.invert_yaxis()
    panel.margins(x=0.25)  # room for the legend
    panel.legend(fontsize=8, loc="lower right")


def _pyplot() -> Any:
    matplotlib = plugins.require("matplotlib", "eval")
    matplotlib.use("Agg")
    return plugins.require("matplotlib.pyplot", "eval")


def _save(figure: Any, out: Path) -> None:
    figure.tight_layout()
    with replacing(out) as path:
        figure.savefig(path, format="png", dpi=110)
    _pyplot().close(figure)
