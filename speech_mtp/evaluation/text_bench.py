"""How fast text is made: every head with every rule, plain decoding and peers, on the same requests, in turn.

A request is a turn of a question with the conversation before it. Answers that later turns see are those of our plain
decoding, so that all are asked the same. All answer a request before the next comes, each time another one first: what
else the machine does hits everybody alike. Decoding is greedy, one request at a time. ``tokens_per_s`` and the
speed-ups count the prompt's time; reading and decoding are reported apart besides, as programs differ in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from speech_mtp.evaluation.contenders import LOOKUP, OURS, TRANSFORMERS, Contender
from speech_mtp.evaluation.journal import Journal
from speech_mtp.evaluation.memory import PeakMemory
from speech_mtp.evaluation.questions import Question
from speech_mtp.evaluation.watch import now
from speech_mtp.lm.chat import opening
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.progress import progress

DEFINITIONS = {
    "tokens_per_forward": "tokens gained by one forward of the trunk, the bonus token included (plain decoding: 1)",
    "acceptance": "per drafted position, the share kept of those whose predecessors were all kept (conditional)",
    "speedup": (
        "ratio of tokens per second over all requests, which is that of total times where answers are the same; the "
        "interval holds 95 % of 1,000 bootstrap samples of the questions; of the others the fastest dtype counts"
    ),
    "reading": "tokens of the prompts a second, until the first step of each answer is done (its new tokens included)",
    "decoding": "tokens a second after that first step, prompts not counted",
    "identical_fraction": "share of requests with the very answer of our plain decoding in the same dtype",
    "peak_memory_mb": "the most that a request took beyond the weights and whatever else was in use before it",
}
SAMPLES = 1000
WARM_UP_TOKENS = 8
SUMS = ("requests", "identical", "tokens", "seconds", "prompt_tokens", "read_s", "first_tokens", "forwards", "emitted")


@dataclass
class Tally:
    """What one contender did for one question, all turns together. ``read_s`` is the part of ``seconds`` in which the
    ``prompt_tokens`` were read and ``first_tokens`` made, those of the first step."""

    requests: int = 0
    identical: int = 0
    tokens: int = 0
    seconds: float = 0.0
    prompt_tokens: int = 0
    read_s: float = 0.0
    first_tokens: int = 0
    peak_bytes: int | None = None
    forwards: int = 0
    emitted: int = 0
    tried: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Sums, position by position; of the memory the most."""
        for key in SUMS:
            setattr(self, key, getattr(self, key) + getattr(other, key))
        self.tried = [a + b for a, b in zip_longest(self.tried, other.tried, fillvalue=0)]
        self.kept = [a + b for a, b in zip_longest(self.kept, other.kept, fillvalue=0)]
        peaks = [peak for peak in (self.peak_bytes, other.peak_bytes) if peak is not None]
        self.peak_bytes = max(peaks, default=None)


def text_bench(
    lm: TextLM, contenders: Sequence[Contender], questions: Sequence[Question], max_new_tokens: int, journal: Journal
) -> dict[str, Any]:
    """Measure what ``journal`` does not hold yet, question by question; the report as plain JSON.

    ``lm`` lends its tokenizer and the length of its context: turns that do not fit into it are left out. Among
    ``contenders`` there is plain decoding in every dtype of ours; the first of these leads the conversations. Raises
    ValueError when no turn fits.
    """
    left = list(enumerate(questions))[len(journal.rows) :]
    if left:
        prompt = opening(lm.tokenizer, [{"role": "user", "content": questions[0].turns[0]}])[: lm.max_positions // 2]
        for contender in contenders:
            contender.answer([prompt], WARM_UP_TOKENS)
    for place, question in progress(left, "text", "question"):
        tallies = answer_in_turn(lm, contenders, question, max_new_tokens, place)
        journal.add({"question": question.name, "answers": {name: asdict(tally) for name, tally in tallies.items()}})
    return report(contenders, journal.rows)


def answer_in_turn(
    lm: TextLM, contenders: Sequence[Contender], question: Question, max_new_tokens: int, place: int
) -> dict[str, Tally]:
    """Every turn of ``question``, answered by all before the next turn; contender ``place`` of them begins."""
    plain = {contender.dtype: contender.name for contender in contenders if contender.is_vanilla}
    leader = next(iter(plain.values()))
    first = place % len(contenders)
    order = [*contenders[first:], *contenders[:first]]
    tallies = {contender.name: Tally() for contender in contenders}
    messages: list[dict[str, str]] = []
    for turn in question.turns:
        messages.append({"role": "user", "content": turn})
        prompt = opening(lm.tokenizer, messages)
        if len(prompt) + max_new_tokens > lm.max_positions:
            break
        said = {}
        for contender in order:
            said[contender.name], tally = _timed(contender, prompt, max_new_tokens)
            tallies[contender.name].add(tally)
        for contender in order:
            same = said[contender.name] == said[plain.get(contender.dtype, leader)]
            tallies[contender.name].identical += same
        messages.append({"role": "assistant", "content": lm.tokenizer.decode(said[leader], skip_special_tokens=True)})
    return tallies


def _timed(contender: Contender, prompt: list[int], max_new_tokens: int) -> tuple[list[int], Tally]:
    with PeakMemory(contender.device) as peak:
        began = now(contender.device)
        answers = contender.answer([prompt], max_new_tokens)
        seconds = now(contender.device) - began
    tokens, watch, s = answers.tokens[0], answers.watch, answers.statistics
    tally = Tally(1, 0, len(tokens), seconds, len(prompt), watch.seconds, watch.tokens, peak.bytes)
    if s is not None:
        tally.forwards, tally.emitted, tally.tried, tally.kept = s.forwards, s.emitted, s.tried, s.kept
    return tokens, tally


# -- the report -------------------------------------------------------------------------------------------------------
def report(contenders: Sequence[Contender], measured: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """``rows`` of ours and ``peers``, and what their figures mean; ``measured`` are the journal's rows."""
    answers = [line["answers"] for line in measured if line["answers"][contenders[0].name]["requests"]]
    if not answers:
        raise ValueError("None of the questions fits into the model's context; ask for fewer new tokens.")
    tallies = {c.name: [Tally(**by_name[c.name]) for by_name in answers] for c in contenders}
    times = {name: torch.tensor([[t.tokens, t.seconds] for t in found]) for name, found in tallies.items()}
    bases = {
        "vanilla": _fastest([c.name for c in contenders if c.is_vanilla], times),
        "transformers": _fastest([c.name for c in contenders if c.program == TRANSFORMERS], times),
        "transformers_lookup": _fastest([c.name for c in contenders if c.program == LOOKUP], times),
    }
    rows = [_row(c, tallies[c.name], bases, times) for c in contenders]
    return {
        "questions": len(answers),
        "requests": max(row["requests"] for row in rows),
        "fastest": {base: name for base, name in bases.items() if name is not None},
        "definitions": DEFINITIONS,
        "rows": [row for row in rows if row["program"] == OURS],
        "peers": [row for row in rows if row["program"] != OURS],
    }


def _row(
    contender: Contender, tallies: Sequence[Tally], bases: dict[str, str | None], times: dict[str, Tensor]
) -> dict[str, Any]:
    whole = Tally()
    for tally in tallies:
        whole.add(tally)
    row = {
        **contender.entries(),
        "tokens_per_forward": whole.emitted / whole.forwards if whole.forwards else None,
        "acceptance": [kept / max(1, tried) for kept, tried in zip(whole.kept, whole.tried, strict=True)],
        "tokens_per_s": whole.tokens / whole.seconds,
        "reading": _pace(whole.prompt_tokens, whole.read_s),
        "decoding": _pace(whole.tokens - whole.first_tokens, whole.seconds - whole.read_s),
    }
    for base, name in bases.items():
        if name is not None:
            row[f"speedup_over_{base}"], row[f"speedup_over_{base}_interval"] = speedup(
                times[contender.name], times[name]
            )
    return {
        **row,
        "identical_fraction": whole.identical / whole.requests,
        "peak_memory_mb": None if whole.peak_bytes is None else whole.peak_bytes / 2**20,
        "requests": whole.requests,
        "tokens": whole.tokens,
        "seconds": whole.seconds,
    }


def _pace(tokens: int, seconds: float) -> dict[str, float | None]:
    """None a second where there was nothing to do: an answer may be one step."""
    return {"tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds if tokens else None}


def speedup(this: Tensor, base: Tensor, seed: int = 0) -> tuple[float, tuple[float, float]]:
    """How many times as many tokens per second; ``this, base [questions, 2]`` are tokens and seconds of each question.

    With the interval that holds 95 % of the bootstrap samples of the questions, which are the same for every pair.
    """
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(this), (SAMPLES, len(this)), generator=rng)
    samples = _rate(this[drawn].sum(1)) / _rate(base[drawn].sum(1))
    low, high = torch.quantile(samples, torch.tensor([0.025, 0.975])).tolist()
    return float(_rate(this.sum(0)) / _rate(base.sum(0))), (low, high)


def _rate(sums: Tensor) -> Tensor:
    """``[..., 2]`` tokens and seconds -> tokens per second."""
    return sums[..., 0] / sums[..., 1]


def _fastest(names: Sequence[str], times: dict[str, Tensor]) -> str | None:
    return max(names, key=lambda name: float(_rate(times[name].sum(0))), default=None)
