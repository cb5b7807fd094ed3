"""Whether text is the same whatever drafts it: many prompts, every head with every rule, in batches.

Compared are our plain decoding, of drawn text with the same seed, and of greedy text ``transformers.generate``.
Where two answers part, the model's own logits there say whether it was a tie, which rounding decides, or a fault: a
batch of another shape may change the last bit of a float.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from speech_mtp.decoding.sampling import adjust, perturbed, row_seeds
from speech_mtp.evaluation.contenders import GREEDY, OURS, Answers, Contender
from speech_mtp.evaluation.intervals import estimate, ratio
from speech_mtp.evaluation.journal import Journal
from speech_mtp.evaluation.watch import Watch
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.progress import progress
from speech_mtp.types import RowSampling, Sampling

TIE_FP32 = 1e-4
TIE_BF16_STEPS = 2
EXACT = ("fp32", "bf16-invariant")
"""The dtypes in which the text must be the same whatever drafts it."""


@dataclass
class Mismatch:
    """Prompt ``prompt`` (counted from 0): at new token ``position`` there is ``token``, elsewhere ``expected``.

    ``gap`` is how far the model scores the worse of the two below its best token, None if one of the answers ends
    there; ``top2_gap`` how far its second best, both by the model's own layers. A ``tie`` is decided by rounding, and
    for an invariant model there is none.
    """

    prompt: int
    position: int
    token: int | None
    expected: int | None
    gap: float | None
    top2_gap: float
    tie: bool


@dataclass
class Comparison:
    """Answers that are the ``same``, and where the others part."""

    same: int = 0
    mismatches: list[Mismatch] = field(default_factory=list)

    def add(self, other: Comparison) -> None:
        self.same += other.same
        self.mismatches += other.mismatches

    def to_json(self) -> dict[str, Any]:
        """Counts, and the mismatches that are no ties; ties by themselves."""
        faults = [asdict(m) for m in self.mismatches if not m.tie]
        ties = [asdict(m) for m in self.mismatches if m.tie]
        prompts = self.same + len(self.mismatches)
        return {"identical": self.same, "identical_fraction": self.same / prompts, "mismatches": faults, "ties": ties}


@dataclass(frozen=True)
class Group:
    """The contenders of one dtype, all with the model ``lm`` and ``sampling``: what is compared, and with what."""

    lm: TextLM
    contenders: Sequence[Contender]
    references: dict[str, Contender]
    sampling: Sampling = GREEDY


def identity(
    groups: Sequence[Group], prompts: Sequence[Sequence[int]], max_new_tokens: int, batch: int, journal: Journal
) -> dict[str, Any]:
    """Answer ``prompts``, so many rows at a time; goes on after what ``journal`` holds. The report as plain JSON.

    Its ``rows`` have, for each reference, the number of identical answers, the mismatches and the ties. Prompts that
    with their answer do not fit into the context are ``left_out``, and not counted. Raises ValueError if none fits.
    """
    asked, room = len(prompts), min(group.lm.max_positions for group in groups) - max_new_tokens
    prompts = [prompt for prompt in prompts if len(prompt) <= room]
    if not prompts:
        raise ValueError("None of the prompts fits into the model's context; ask for fewer new tokens.")
    starts = range(0, len(prompts), batch)
    for first in progress(starts[len(journal.rows) :], "identity", "batch"):
        found: dict[str, Any] = {}
        for group in groups:
            found |= _batch(group, prompts[first : first + batch], first, max_new_tokens)
        journal.add({"first": first, "answers": found})
    return {
        "prompts": len(prompts),
        "left_out": asked - len(prompts),
        "tie_fp32": TIE_FP32,
        "tie_bf16_steps": TIE_BF16_STEPS,
        "rows": [_row(contender, group, journal) for group in groups for contender in group.contenders],
    }


def _batch(group: Group, prompts: Sequence[Sequence[int]], first: int, max_new_tokens: int) -> dict[str, Any]:
    expected = {name: c.answer(prompts, max_new_tokens).tokens for name, c in group.references.items()}
    found: dict[str, Any] = {}
    for contender in group.contenders:
        known = next((expected[name] for name, c in group.references.items() if c is contender), None)
        answers = contender.answer(prompts, max_new_tokens) if known is None else Answers(known, Watch(group.lm.device))
        said = answers.tokens
        found[contender.name] = {
            "tokens": sum(map(len, said)),
            "against": {name: asdict(_compare(group, prompts, said, e, first)) for name, e in expected.items()},
            "counts": [[count.forwards, count.emitted] for count in answers.counts or ()],
        }
    return found


def _compare(
    group: Group, prompts: Sequence[Sequence[int]], said: list[list[int]], expected: list[list[int]], first: int
) -> Comparison:
    result = Comparison()
    seeds = row_seeds(group.sampling.seed, len(prompts), group.lm.device).tolist()
    for place, (prompt, mine, other) in enumerate(zip(prompts, said, expected, strict=True)):
        if mine == other:
            result.same += 1
        else:
            sampling = replace(group.sampling, seed=seeds[place])
            result.mismatches.append(explain(group.lm, prompt, mine, other, first + place, sampling))
    return result


def explain(
    lm: TextLM,
    prompt: Sequence[int],
    said: list[int],
    expected: list[int],
    number: int,
    sampling: Sampling = GREEDY,
) -> Mismatch:
    """Where two answers to ``prompt`` part, and what the model thinks of both tokens there: of drawn text, with the
    noise of that place added."""
    both = zip(said, expected, strict=False)
    at = next((i for i, (a, b) in enumerate(both) if a != b), min(len(said), len(expected)))
    token = said[at] if at < len(said) else None
    other = expected[at] if at < len(expected) else None
    read = torch.tensor([[*prompt, *said[:at]]], device=lm.device)
    with torch.inference_mode():
        states = lm(read, torch.tensor([read.shape[1]], device=lm.device))
        logits = _drawn(lm.output.logits(states.top[:, -1]).float(), read.shape[1], sampling)[0]
    best, second = logits.topk(2).values.tolist()
    gap = None if token is None or other is None else best - min(float(logits[token]), float(logits[other]))
    tie = not lm.invariant and gap is not None and gap <= tie_below(lm.dtype, best)
    return Mismatch(number, at, token, other, gap, best - second, tie)


def _drawn(logits: Tensor, position: int, sampling: Sampling) -> Tensor:
    """What the largest is taken of at ``position``: ``logits [1, V]``, of drawn text by its law and with noise."""
    rows, every = RowSampling([sampling], logits.device), torch.arange(logits.shape[-1], device=logits.device)
    return perturbed(adjust(logits, rows), rows, torch.tensor([position], device=logits.device), 0, every)


def tie_below(dtype: torch.dtype, logit: float) -> float:
    """The gap up to which rounding decides: 1e-4 in fp32, two steps of the format at the best ``logit`` in bf16."""
    if dtype == torch.float32:
        return TIE_FP32
    _, exponent = torch.frexp(torch.tensor(logit))
    return TIE_BF16_STEPS * torch.finfo(dtype).eps * 2.0 ** (int(exponent) - 1)


def _row(contender: Contender, group: Group, journal: Journal) -> dict[str, Any]:
    lines = [line["answers"][contender.name] for line in journal.rows]
    row = {**contender.entries(), "same_seed": contender.same_seed, "tokens": sum(line["tokens"] for line in lines)}
    counts = [count for line in lines for count in line["counts"]]
    if counts:
        tokens_first = torch.tensor(counts).flip(1)
        figure = estimate(tokens_first, ratio)
        row["tokens_per_forward"], row["interval"] = figure["value"], figure["interval"]
    for name, reference in group.references.items():
        if reference is not contender:
            total = Comparison()
            for line in lines:
                found = line["against"][name]
                total.add(Comparison(found["same"], [Mismatch(**m) for m in found["mismatches"]]))
            row[name] = total.to_json()
    return row


def faults(report: dict[str, Any]) -> int:
    """Mismatches that are no ties, of lossless rules of ours in the dtypes of :data:`EXACT`: there must be none."""
    ours = [row for row in report["rows"] if row["program"] == OURS and row["lossless"] and row["same_seed"]]
    rows = [row for row in ours if row["dtype"] in EXACT]
    return sum(len(row[name]["mismatches"]) for row in rows for name in ("vanilla", "transformers") if name in row)
