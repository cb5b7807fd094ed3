"""The one loop: propose, verify, accept, commit; for text and for speech, for rows that come and go.

The engine knows nothing of phonemes, waveforms or heads. Plain decoding is the draft of size one. :func:`step` is the
loop's body; :class:`Run` keeps rows that join and leave, each with its own settings, and says when one has ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from speech_mtp.decoding.base import DecodingRule, sent
from speech_mtp.decoding.laws import Guard, Law, SpeechLaw
from speech_mtp.decoding.vanilla import Vanilla
from speech_mtp.lm.group_lm import GroupLM, SpeechRows
from speech_mtp.lm.rows import Trunk
from speech_mtp.nn.row_values import put, select, widen
from speech_mtp.types import Draft, Emitted, Finish, LMOutput, RowSampling, Sampling, Status, TextUnits, Verdict

REASONS = {Status.STOP: "stop", Status.LENGTH: "length", Status.RUNAWAY: "runaway"}


@torch.inference_mode()
def step(lm: Trunk, rule: DecodingRule, rows: Any, law: Law, active: Tensor) -> tuple[Draft, Verdict, Emitted]:
    """One step of the rows ``active [B]``: drafted, verified in one forward, accepted, committed."""
    draft = lm.placed(rows, rule.propose(rows, law))
    out = lm.verify(rows, draft, rule.taps)
    verdict = rule.accept(rows, draft, out, law)
    new = lm.commit(rows, draft, verdict, active)
    rule.read(rows, law, kept(out, verdict), new)
    return draft, verdict, new


def kept(out: LMOutput, verdict: Verdict) -> LMOutput:
    """The states of the kept nodes, in order."""
    index = verdict.path.clamp(min=0)[..., None, None].expand(-1, -1, *out.hidden.shape[2:])
    return LMOutput(out.hidden.gather(1, index))


@dataclass
class Statistics:
    """What drafting gave, over all rows: ``forwards`` of the trunk while rows were running, ``paused`` of which drafted
    nothing because it did not pay, ``emitted`` positions; and per depth (from 1) how often a draft was ``tried``, all
    earlier ones being right, and was ``kept``. Several drafts of one position are one try."""

    forwards: int = 0
    paused: int = 0
    emitted: int = 0
    tried: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)

    @property
    def tokens_per_forward(self) -> float:
        """Mean positions a row gains by one forward, the sure one included: 1 without drafts."""
        return self.emitted / max(1, self.forwards)

    @property
    def acceptance(self) -> list[float]:
        """Per depth, the share of drafts kept among those whose predecessors were all kept (conditional)."""
        return [kept / max(1, tried) for kept, tried in zip(self.kept, self.tried, strict=True)]

    def count(self, tried: int, kept: int) -> None:
        """One row, one forward: ``tried`` depths were judged, ``kept`` of them right: all, or all but the last."""
        self.forwards += 1
        for d in range(tried):
            if d == len(self.tried):
                self.tried.append(0)
                self.kept.append(0)
            self.tried[d] += 1
            self.kept[d] += d < kept


def total(counts: Sequence[Statistics]) -> Statistics:
    """All of ``counts`` together."""
    found = Statistics(sum(c.forwards for c in counts), sum(c.paused for c in counts), sum(c.emitted for c in counts))
    depths = max((len(c.tried) for c in counts), default=0)
    for d in range(depths):
        found.tried.append(sum(c.tried[d] for c in counts if d < len(c.tried)))
        found.kept.append(sum(c.kept[d] for c in counts if d < len(c.kept)))
    return found


@dataclass
class Step:
    """What one step gave: new positions ``tokens [B, T, C]``, ``lengths [B]`` of them per row, and the tokens of each
    row on the host."""

    tokens: Tensor
    lengths: Tensor
    new: list[list[list[int]]]
    pointers: list[list[int]] = field(default_factory=list)


@dataclass
class Run:
    """Rows that are decoded together by one rule. :meth:`advance` makes one step of every row that can go on.

    A row joins with what :meth:`Trunk.open` or ``prefill`` made of it alone (:meth:`join`), is fed while it runs, and
    leaves. Rows are numbered by their place, which stays until :meth:`gather`. ``finish[b]`` says why row b has ended;
    None while it runs. The number of places grows in powers of two.
    """

    lm: Any
    law: Law
    rows: Any
    rule: DecodingRule = field(default_factory=Vanilla)
    finish: list[Finish | None] = field(default_factory=list)
    status: list[Status] = field(default_factory=list)
    steps: int = 0
    counts: list[Statistics] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.finish:
            self.finish = [None] * self.rows.count
            self.counts = [Statistics() for _ in self.finish]
            if self.rows.head is None:
                self.rule.begin(self.rows, self.law)
            self.refresh()

    @property
    def statistics(self) -> Statistics:
        """What drafting gave over the rows that are there."""
        return total([counts for counts, finish in zip(self.counts, self.finish, strict=True) if finish != LEFT])

    # -- rows come and go ---------------------------------------------------------------------------------------
    @torch.inference_mode()
    def join(self, row: Any) -> int:
        """Take in ``row``, rows of one that have been opened alone; its place."""
        if row.head is None:
            self.rule.begin(row, self.law)
        free = [b for b, finish in enumerate(self.finish) if finish == LEFT]
        if not free:
            size = len(self.finish)
            self.rows = widen(self.rows, 2 * size)
            self.finish += [LEFT] * size
            self.status += [Status.STOP] * size
            self.counts += [Statistics() for _ in range(size)]
            free = [size]
        b = free[0]
        self.rows = put(self.rows, b, row)
        self.finish[b], self.counts[b] = None, Statistics()
        self.refresh()
        return b

    def leave(self, b: int) -> None:
        """Row ``b`` goes, finished or not; its place may be taken by another."""
        self.finish[b] = LEFT
        self.status[b] = Status.STOP

    def feed(self, b: int, units: TextUnits) -> None:
        """Late text for row ``b`` of speech: longer units, a batch of one, that begin with those it has."""
        self.lm.extend(self.rows, b, units)
        self.refresh()

    @torch.inference_mode()
    def alone(self, b: int) -> Any:
        """Row ``b`` as rows of one, to be fed and put back."""
        return select(self.rows, torch.tensor([b], device=self.rows.last.device))

    @torch.inference_mode()
    def put(self, b: int, row: Any) -> None:
        """Row ``b`` becomes ``row``, rows of one."""
        self.rows = put(self.rows, b, row)
        self.refresh()

    @property
    def is_sparse(self) -> bool:
        """Whether so many rows have left that closing the gaps pays: three of four places are free."""
        stay = sum(finish != LEFT for finish in self.finish)
        return len(self.finish) >= 4 * max(1, stay)

    @torch.inference_mode()
    def gather(self) -> list[int]:
        """Close the gaps that rows have left: the old places of those that stay, in their new order."""
        stay = [b for b, finish in enumerate(self.finish) if finish != LEFT]
        size = 1 << (max(1, len(stay)) - 1).bit_length()
        spare = [b for b in range(len(self.finish)) if b not in stay][: size - len(stay)]
        order = stay + spare
        self.rows = select(self.rows, torch.tensor(order, device=self.rows.last.device))
        self.finish = [self.finish[b] for b in order]
        self.status = [self.status[b] for b in order]
        self.counts = [self.counts[b] for b in order]
        return stay

    def refresh(self) -> None:
        """Where every row stands now: after rows were joined or fed."""
        found = self.law.status(self.rows, self.rows.place).tolist()
        self.status = [Status.STOP if f == LEFT else Status(s) for f, s in zip(self.finish, found, strict=True)]

    # -- the loop -----------------------------------------------------------------------------------------------
    def going(self) -> list[bool]:
        """Rows that can make a step. A row that can never make one again is finished."""
        for b, (finish, status) in enumerate(zip(self.finish, self.status, strict=True)):
            if finish is None and status in REASONS:
                self.finish[b] = self._finished(b, status)
        return [f is None and s is Status.GOING for f, s in zip(self.finish, self.status, strict=True)]

    def _finished(self, b: int, status: Status) -> Finish:
        detail = self.law.detail(self.rows, b, status) if isinstance(self.law, SpeechLaw) else ""
        return Finish(REASONS[status], detail)

    def advance(self, only: Sequence[bool] | None = None) -> Step | None:
        """One step of every row that can go on (of those that ``only`` names); None when there is none."""
        going = self.going()
        if only is not None:
            going = [a and b for a, b in zip(going, only, strict=True)]
        if not any(going):
            return None
        active = sent([int(on) for on in going], self.rows.last.device) > 0
        _, verdict, new = step(self.lm, self.rule, self.rows, self.law, active)
        self.steps += 1
        return self._report(going, verdict, new)

    def _report(self, going: list[bool], verdict: Verdict, new: Emitted) -> Step:
        """What is new, on the host: one copy a step."""
        t, c = new.tokens.shape[1:]
        status = self.law.status(self.rows, self.rows.place)
        pointer = getattr(new.place, "pointer", None)
        parts = [torch.stack([new.lengths, verdict.tried, verdict.kept, status, self.rows.cache.lengths], 1)]
        parts += [new.tokens.flatten(1)] + ([] if pointer is None else [pointer])
        host = torch.cat(parts, 1).tolist()
        found = Step(new.tokens, new.lengths, [])
        for b, (length, tried, kept, status_b, _, *rest) in enumerate(host):
            found.new.append([rest[i * c : (i + 1) * c] for i in range(length)])
            found.pointers.append(rest[t * c : t * c + length])
            if going[b]:
                self.status[b] = Status(status_b)
                self.counts[b].count(tried, kept)
                self.counts[b].emitted += length
                self.counts[b].paused += self.rule.paused
        self.rows.cache.know(max(row[4] for row in host))
        self.going()
        return found


LEFT = Finish("cancelled", "the row has left")
"""The finish of a place that is free."""


# -- speech -------------------------------------------------------------------------------------------------------
def start(
    lm: GroupLM,
    units: TextUnits,
    timbre: Tensor,
    sampling: Sampling,
    rule: DecodingRule | None = None,
    seeds: Tensor | None = None,
    guard: Guard | None = None,
) -> Run:
    """A run over the rows of ``units`` with voices ``timbre [B, E]``; ``seeds [B]`` default to the sampling's."""
    sampling.check_codebooks(len(lm.config.codebook_sizes))
    rows: SpeechRows = lm.prefill(units, timbre)
    every = [sampling.seed] * len(timbre) if seeds is None else seeds.tolist()
    rows.sampling = RowSampling([replace(sampling, seed=seed) for seed in every], timbre.device)
    return Run(lm, SpeechLaw(lm, guard), rows, rule or Vanilla())


def generate(
    lm: GroupLM,
    units: TextUnits,
    timbre: Tensor,
    sampling: Sampling,
    seeds: Tensor | None = None,
    rule: DecodingRule | None = None,
) -> Iterator[Step]:
    """Every step of a whole batch of complete texts."""
    run = start(lm, units, timbre, sampling, rule, seeds)
    while (made := run.advance()) is not None:
        yield made
