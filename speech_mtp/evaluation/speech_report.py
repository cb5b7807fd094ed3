"""How well a model speaks: many sentences in one voice, judged one by one and together.

The report knows no model: it is handed a function that speaks a sentence and tells how long that took.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol

import torch
from torch import Tensor

from speech_mtp.evaluation.intervals import estimate, ratio
from speech_mtp.evaluation.journal import Journal
from speech_mtp.evaluation.judges import Judges
from speech_mtp.evaluation.last_word import last_word_heard
from speech_mtp.evaluation.latency import delays, real_time_factor
from speech_mtp.evaluation.speaker_similarity import speaker_similarity
from speech_mtp.evaluation.wer import word_errors
from speech_mtp.progress import progress
from speech_mtp.types import Finish

NUM_WORST = 10


class Spoken(Protocol):
    """One utterance: ``wave [S]``, and the seconds it took as a whole and until its first sample."""

    @property
    def wave(self) -> Tensor: ...
    @property
    def sample_rate(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def finish(self) -> Finish: ...
    @property
    def compute_s(self) -> float: ...
    @property
    def first_audio_s(self) -> float: ...


def speech_report(
    say: Callable[[str], Spoken],
    sentences: Sequence[str],
    reference: tuple[Tensor, int] | None = None,
    judges: Judges | None = None,
    opinions: int | None = None,
    journal: Journal | None = None,
    voice: str = "",
) -> dict[str, Any]:
    """Aggregates, the worst sentences and one row per sentence (``rows``), all of it plain JSON.

    Opinion scores, which take most of the time, are those of the first ``opinions`` sentences (None: of all); the other
    rows have none. ``wer_interval`` holds 95 % of the bootstrap samples of the sentences. What each of the other
    recognisers hears has its own word errors (``others``, by name, in the report and in each row).
    ``reference`` is a wave of the voice with its rate; without one, utterances are compared with the mean of the others
    (``similarity_to`` says which). Rates are fractions, times are in the unit of their name. An utterance in which no
    speech is found has ``similarity`` None and counts as 0. Sentences that ``journal`` holds for ``voice`` are not
    spoken again. Raises ``ValueError`` for no sentences, and for a reference without speech.
    """
    if not sentences:
        raise ValueError("There are no sentences to evaluate; give a file with one sentence a line.")
    judges = judges or Judges()
    judged = [line for line in journal.rows if line["voice"] == voice] if journal else []
    if journal and [line["row"]["text"] for line in judged] != list(sentences[: len(judged)]):
        raise ValueError(f"{journal.path} was written by two runs at once; remove it, and begin anew.")
    for i, text in enumerate(progress(sentences[len(judged) :], "speech", "sentence"), start=len(judged)):
        line = {"voice": voice, **_judge(text, say(text), judges, opinions is None or i < opinions)}
        if journal:
            journal.add(line)
        judged.append(line)
    rows: list[dict[str, Any]] = [line["row"] for line in judged]
    speakers = [None if line["speaker"] is None else torch.tensor(line["speaker"]) for line in judged]
    anchor = None if reference is None else judges.embed(*reference)
    similarities = _similarities(speakers, anchor)
    rows = [{**row, "similarity": similarity} for row, similarity in zip(rows, similarities, strict=True)]
    report = _aggregate(rows)
    if judges.others:
        report["others"] = {name: word_rate([row["others"][name] for row in rows]) for name in judges.others}
    report["similarity_to"] = "mean of the other utterances" if anchor is None else "reference"
    report["worst"] = sorted(rows, key=lambda row: (row["wer"], row["cer"]), reverse=True)[:NUM_WORST]
    return {**report, "rows": rows}


def _judge(text: str, spoken: Spoken, judges: Judges, opinion: bool) -> dict[str, Any]:
    """The ``row`` of an utterance and its ``speaker`` vector."""
    wave, rate = spoken.wave, spoken.sample_rate
    heard = judges.transcribe(wave, rate)
    found = word_errors(text, heard)
    seconds = len(wave) / rate
    speaker = judges.speaker(wave, rate)
    row = {
        "text": text,
        "heard": heard,
        "wer": found.wer,
        "cer": found.cer,
        **asdict(found),
        "finish_reason": spoken.finish.reason,
        **({"others": _heard_by(text, spoken, judges)} if judges.others else {}),
        "success": spoken.finish.reason == "stop" and last_word_heard(text, heard),
        "dnsmos": judges.opinion(wave, rate) if opinion else None,
        "distill_mos": judges.second_opinion(wave, rate) if opinion else None,
        "seconds": seconds,
        "compute_s": spoken.compute_s,
        "rtf": real_time_factor(spoken.compute_s, seconds),
        "ttfa_ms": 1000 * spoken.first_audio_s,
        "steps": spoken.steps,
    }
    return {"row": row, "speaker": None if speaker is None else speaker.tolist()}


def _heard_by(text: str, spoken: Spoken, judges: Judges) -> dict[str, dict[str, Any]]:
    found = {}
    for name, transcribe in judges.others.items():
        heard = transcribe(spoken.wave, spoken.sample_rate)
        errors = word_errors(text, heard)
        found[name] = {"heard": heard, "errors": errors.errors, "words": errors.words}
    return found


def word_rate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Word errors of ``rows`` over their words (``wer``), and the interval of that by the bootstrap over rows."""
    found = estimate(torch.tensor([[row["errors"], row["words"]] for row in rows]), ratio)
    return {"wer": found["value"], "wer_interval": found["interval"]}


def _similarities(speakers: list[Tensor | None], anchor: Tensor | None) -> list[float | None]:
    """To ``anchor``; without one, of each to the mean of the others (None where there is nothing to compare)."""
    found = [speaker for speaker in speakers if speaker is not None]
    total = torch.stack(found).sum(0) if found else torch.zeros(1)
    scores: list[float | None] = []
    for speaker in speakers:
        if speaker is None or (anchor is None and len(found) < 2):
            scores.append(None)
        else:
            scores.append(speaker_similarity(speaker, total - speaker if anchor is None else anchor))
    return scores


def _aggregate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def total(key: str) -> float:
        return sum(row[key] or 0.0 for row in rows)

    def mean(key: str) -> float | None:
        values = [row[key] for row in rows if row[key] is not None]
        return sum(values) / len(values) if values else None

    first = delays([row["ttfa_ms"] for row in rows])
    return {
        "sentences": len(rows),
        "seconds": total("seconds"),
        **word_rate(rows),
        "cer": total("char_errors") / total("chars"),
        "success_rate": total("success") / len(rows),
        "finish_reasons": dict(Counter(row["finish_reason"] for row in rows)),
        "opinions": sum(row["dnsmos"] is not None for row in rows),
        "dnsmos": mean("dnsmos"),
        "distill_mos": mean("distill_mos"),
        "similarity": total("similarity") / len(rows) if any(row["similarity"] is not None for row in rows) else None,
        "rtf": real_time_factor(total("compute_s"), total("seconds")),
        "ttfa_ms_p50": first.p50,
        "ttfa_ms_p95": first.p95,
        "steps_per_second": total("steps") / total("seconds"),
    }
