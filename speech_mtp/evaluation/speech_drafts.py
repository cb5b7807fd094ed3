"""Draft heads of a speech LM: how far they agree with it, what drafting keeps, and what the parts of a step cost.

Everything is measured on what the model itself says alone, one text at a time: the groups that it drew are what a draft
must guess, and the noise that it drew them with is known.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from speech_mtp.decoding import catalogue, engine
from speech_mtp.decoding import sampling as noise
from speech_mtp.decoding._drafting import Growth
from speech_mtp.decoding.base import DecodingRule
from speech_mtp.decoding.chain import Chain
from speech_mtp.decoding.laws import SpeechLaw
from speech_mtp.heads.base import MTPHead
from speech_mtp.lm.group_lm import GroupLM, SpeechPlace, SpeechRows
from speech_mtp.lm.rows import side_by_side
from speech_mtp.types import Draft, Kind, LMOutput, Positions, Sampling, TextUnits


@dataclass(frozen=True)
class Told:
    """What the model says of one text: ``tokens [1, T, C]``, and the ``place`` (fields ``[1, T, ...]``) that each group
    was drawn at; ``rows`` as they were at the end."""

    units: TextUnits
    timbre: Tensor
    sampling: Sampling
    tokens: Tensor
    place: SpeechPlace
    rows: SpeechRows


def tell(lm: GroupLM, units: TextUnits, timbre: Tensor, sampling: Sampling) -> Told:
    """Plain decoding of a batch of one."""
    run = engine.start(lm, units, timbre, sampling)
    places, groups = [run.rows.place.clone()], []
    while (made := run.advance()) is not None:
        groups.append(made.tokens[:, :1])
        places.append(run.rows.place.clone())
    return Told(units, timbre, sampling, torch.cat(groups, 1), side_by_side(places[:-1]), run.rows)


# -- agreement --------------------------------------------------------------------------------------------------------
@torch.inference_mode()
def agreement(lm: GroupLM, head: MTPHead, told: Told) -> dict[int, Tensor]:
    """By draft depth, ``[C + 1]``: at how many positions the first 1, 2, ... channels of the guess are what the model
    drew, and at how many there is something to guess. The groups before, and the channels before, are the true ones,
    and the guess has the noise of the draw: so the whole group is right exactly where a chain would keep it, all before
    it being kept."""
    tokens, t = told.tokens, told.tokens.shape[1]
    at = torch.arange(t, device=tokens.device)[None]
    fed = torch.cat([lm.layout.nothing(1, tokens.device)[:, None], tokens[:, :-1]], 1)
    kind = torch.full_like(at, int(Kind.SPEECH))
    positions = Positions(fed, kind, at, torch.zeros_like(at), told.place.pointer, tokens)
    out = lm(positions, told.units, told.timbre, (*head.taps, -1))
    assert out.inputs is not None
    found: dict[int, Tensor] = {}
    for offset, states in head.unroll_states(LMOutput(out.hidden[:, :, :-1], final=out.top), out.inputs):
        ahead = slice(offset - 1, None)
        count = max(0, t - offset + 1)
        right = _right(lm, told, states[:, :count], tokens[:, ahead], told.place.only(ahead))
        found[offset - 1] = torch.cat([right.long().cumprod(-1).sum(0), torch.tensor([count], device=right.device)])
    return found


def _right(lm: GroupLM, told: Told, states: Tensor, group: Tensor, place: SpeechPlace) -> Tensor:
    """``[N, C]``: where what ``states [1, N, D]`` give at ``place`` (fields ``[1, N, ...]``) is ``group [1, N, C]``."""
    law, n = SpeechLaw(lm), states.shape[1]
    flat, settings = place.map(by=lambda x: x.flatten(0, 1)), law.settings(told.rows, n)
    right = []
    for c, score in enumerate(lm.output.score(states, group)):
        masked = law.masked(told.rows, flat, n, c, score[0])
        right.append(noise.choose(masked, settings[lm.kind_of(c)], flat.position, c) == group[0, :, c])
    return torch.stack(right, -1)


def shares(counts: Mapping[int, Tensor]) -> dict[str, Any]:
    """What :func:`agreement` counted, by depth: ``positions``, the share where the first n channels are right, and how
    many are right in a row."""
    report = {}
    for depth, found in counts.items():
        *right, positions = found.tolist()
        rates = [round(r / max(1, positions), 4) for r in right]
        report[str(depth)] = {"positions": positions, "right": rates, "channels_in_a_row": round(sum(rates), 3)}
    return report


# -- drafting ---------------------------------------------------------------------------------------------------------
@dataclass
class Drafting:
    """What a rule did over all texts."""

    statistics: list[engine.Statistics]
    identical: int = 0
    seconds: float = 0.0

    def report(self, plain_s: float) -> dict[str, Any]:
        total = engine.total(self.statistics)
        return {
            "texts": len(self.statistics),
            "identical": self.identical,
            "groups": total.emitted,
            "groups_per_forward": round(total.tokens_per_forward, 4),
            "tried": total.tried,
            "kept": total.kept,
            "x_plain": round(plain_s / self.seconds, 3),
        }


def drafting(lm: GroupLM, rules: Sequence[catalogue.Spec], head: MTPHead, told: Sequence[Told]) -> dict[str, Any]:
    """Every text by every rule in turn, plain decoding among them; ``x_plain`` is the speed against it."""
    plain_s, found = 0.0, {catalogue.label(rule): Drafting([]) for rule in rules}
    for one in told:
        plain_s += timed(partial(_decode, lm, one))[0]
        for rule in rules:
            seconds, (tokens, statistics) = timed(partial(_decode, lm, one, catalogue.build(rule, head)))
            mine = found[catalogue.label(rule)]
            mine.seconds += seconds
            mine.statistics.append(statistics)
            mine.identical += torch.equal(tokens, one.tokens)
    return {name: mine.report(plain_s) for name, mine in found.items()}


def _decode(lm: GroupLM, told: Told, rule: DecodingRule | None = None) -> tuple[Tensor, engine.Statistics]:
    """The groups ``[1, T, C]`` that ``rule`` gives."""
    run = engine.start(lm, told.units, told.timbre, told.sampling, rule)
    groups = []
    while (made := run.advance()) is not None:
        groups.append(made.tokens[:, : int(made.lengths[0])])
    return torch.cat(groups, 1), run.statistics


# -- cost -------------------------------------------------------------------------------------------------------------
@torch.inference_mode()
def cost(lm: GroupLM, head: MTPHead, told: Told, rounds: int = 60) -> dict[str, float]:
    """Milliseconds of the parts of a step in the middle of a text, medians of rounds in which each has its turn: 1 and
    4 nodes through the trunk (``forward``) and the output layer (``choice``); of a draft of one position the head
    (``head``) and the output layer (``guess``); and the head's reading of a kept group (``read``)."""
    rule = Chain(head, 1)
    run = engine.start(lm, told.units, told.timbre, told.sampling, rule)
    middle = told.tokens.shape[1] // 2
    while int(run.rows.place.position[0]) < middle:
        run.advance()
    rows, law, times = run.rows, run.law, _Times()
    kept, at = rows.head.clone(), int(rows.place.position[0])
    for _ in range(rounds):
        rows.head = kept.clone()
        growth = Growth(head, rows, law)
        first = growth.guesses(growth.states(), 1)
        growth.add(first.tokens[:, :, 0], torch.full((1, 1), -1, device=lm.device))
        states = times.turn("head", growth.states)
        times.turn("guess", partial(growth.guesses, states, 1))
        for nodes in (1, 4):
            tokens = torch.cat([rows.last[:, None], told.tokens[:, at : at + nodes - 1]], 1)
            draft = lm.placed(rows, Draft(tokens, torch.arange(-1, tokens.shape[1] - 1, device=lm.device)[None]))
            out = times.turn(f"forward_{nodes}", partial(lm.verify, rows, draft, rule.taps))
            times.turn(f"choice_{nodes}", partial(law.chooser, rows, draft, out))
        hidden, x = out.hidden[:, :1], lm.vectors(rows, draft.tokens[:, :1], draft.place.only(slice(0, 1)))
        times.turn("read", partial(head.read, rows.head, hidden, x, torch.ones_like(rows.cache.lengths)))
    return times.medians()


class _Times:
    """Milliseconds by name."""

    def __init__(self) -> None:
        self._found: dict[str, list[float]] = {}

    def turn(self, name: str, part: Callable[[], Any]) -> Any:
        """What ``part`` gives, timed."""
        seconds, made = timed(part)
        self._found.setdefault(name, []).append(1000 * seconds)
        return made

    def medians(self) -> dict[str, float]:
        """Without the first three rounds."""
        return {name: round(median(found[3:]), 3) for name, found in self._found.items()}


def timed(part: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that ``part`` took, and what it gave."""
    began = time.perf_counter()
    made = part()
    return time.perf_counter() - began, made


# -- the report -------------------------------------------------------------------------------------------------------
def speech_drafts(
    lm: GroupLM,
    told: Mapping[float, Sequence[Told]],
    heads: Mapping[str, MTPHead],
    rules: Sequence[catalogue.Spec],
    decoded: int | None = None,
) -> dict[str, Any]:
    """By head: ``agreement`` by temperature and depth, ``rules`` by temperature (of those rules that draft with it) and
    ``cost`` (of heads that a chain drafts with). ``told`` are the texts by temperature, the first ``decoded`` of which
    are decoded by the rules."""
    report: dict[str, Any] = {}
    for name, head in heads.items():
        fitting = [rule for rule in rules if catalogue.fits(rule, head)]
        mine: dict[str, Any] = {"agreement": {}, "rules": {}}
        for temperature, texts in told.items():
            counts: dict[int, Tensor] = {}
            for one in texts:
                for depth, found in agreement(lm, head, one).items():
                    counts[depth] = counts[depth] + found if depth in counts else found
            mine["agreement"][str(temperature)] = shares(counts)
            mine["rules"][str(temperature)] = drafting(lm, fitting, head, texts[:decoded])
        report[name] = mine
        if Chain.supports(head):
            longest = max(next(iter(told.values())), key=lambda one: one.tokens.shape[1])
            mine["cost"] = cost(lm, head, longest)
    return report
