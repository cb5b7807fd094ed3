"""The one loop: propose, verify, accept, commit. Plain decoding is the draft of size one.

The engine knows nothing of phonemes, waveforms or heads. :func:`step` moves rows of speech and rows of text alike;
:class:`Run` moves rows of speech until each is done, must wait for text, or is stopped by a guard (text:
:mod:`speech_mtp.decoding.text`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from speech_mtp.decoding.base import DecodingRule, Law, seeds_of
from speech_mtp.decoding.laws import SpeechLaw
from speech_mtp.decoding.vanilla import Vanilla
from speech_mtp.layouts.base import Next
from speech_mtp.lm.decode import DecodeState, GroupLM
from speech_mtp.types import Draft, Finish, LMOutput, Sampling, TextUnits, Verdict

if TYPE_CHECKING:  # it imports ``transformers``, which takes a second
    from speech_mtp.lm.text_lm import TextLM

Trim = Callable[[Draft, Verdict], Verdict]


@dataclass(frozen=True)
class Guard:
    """When a row is a runaway: more than ``frames_per_unit`` frames per text unit, or ``frames_per_character`` where
    units are tokens of any length (plus ``spare_frames``), or the same content code for ``max_repeat`` frames. Where
    positions point into the text, the units before the pointer count: how much more text there is, or has arrived,
    makes no difference."""

    frames_per_unit: float = 8.0
    frames_per_character: float = 6.0
    spare_frames: int = 50
    max_repeat: int = 60


@dataclass
class Step:
    """What one step gave: ``frames [B, K, F]``, of which ``lengths [B]`` count, and the pointers ``[B]`` after it."""

    frames: Tensor
    lengths: Tensor
    pointer: Tensor


@dataclass
class Run:
    """A decode in progress: :meth:`advance` makes one step for every row that can make one."""

    lm: GroupLM
    state: DecodeState
    law: SpeechLaw
    rule: DecodingRule = field(default_factory=Vanilla)
    guard: Guard = field(default_factory=Guard)
    finish: list[Finish | None] = field(default_factory=list)
    steps: int = 0

    def __post_init__(self) -> None:
        self.finish = [None] * len(self.state.last)
        self._repeat = [0] * len(self.finish)
        self._code = [-1] * len(self.finish)

    def waiting(self) -> list[bool]:
        """Rows that cannot go on until :meth:`GroupLM.extend` brings more text."""
        return [self._next(b) is Next.WAIT for b in range(len(self.finish))]

    def _next(self, b: int) -> Next:
        if self.finish[b] is not None:
            return Next.DONE
        s = self.state
        last = int(s.last[b, 0]) if int(s.groups[b]) else None
        return self.lm.layout.next_kind(int(s.pointer[b]), int(s.units.lengths[b]), bool(s.units.complete[b]), last)

    def advance(self) -> Step | None:
        """One step of every row that can go on; None when there is none."""
        todo = [self._next(b) for b in range(len(self.finish))]
        for b, kind in enumerate(todo):
            if kind is Next.DONE and self.finish[b] is None:
                self.finish[b] = Finish("stop")
        active = torch.tensor([kind is Next.SPEECH for kind in todo], device=self.state.last.device)
        if not active.any():
            return None
        _, verdict, _ = step(self.lm, self.rule, self.state, self.law, active)
        self.steps += 1
        frames = self.lm.layout.frames(verdict.next[:, None])
        lengths = active.long() * frames.shape[-1]
        self._watch(frames, active)
        return Step(frames, lengths, self.state.pointer)

    def _watch(self, frames: Tensor, active: Tensor) -> None:
        """The runaway guard: a row that trips it ends with finish reason ``runaway`` or ``length``."""
        content = frames[:, 0].tolist()
        lengths = (self.state.groups * frames.shape[-1]).tolist()
        units, guard = self.state.units, self.guard
        if units.characters is None:
            sizes = (self.state.pointer if self.lm.layout.points else units.lengths).tolist()
            per, name = guard.frames_per_unit, "text units"
        else:
            sizes, per, name = units.characters.tolist(), guard.frames_per_character, "characters"
        for b in torch.nonzero(active)[:, 0].tolist():
            for code in content[b]:
                self._repeat[b] = self._repeat[b] + 1 if code == self._code[b] else 1
                self._code[b] = code
            if self._repeat[b] > guard.max_repeat:
                self.finish[b] = Finish("runaway", f"one content code for {self._repeat[b]} frames")
            elif lengths[b] > per * sizes[b] + guard.spare_frames:
                self.finish[b] = Finish("length", f"{lengths[b]} frames for {sizes[b]} {name}")


@torch.inference_mode()
def step(
    lm: GroupLM | TextLM, rule: DecodingRule, state: Any, law: Law, active: Tensor, trim: Trim | None = None
) -> tuple[Draft, Verdict, Tensor]:
    """Hidden states -> draft -> one forward -> kept path and one sure position -> committed state.

    ``trim`` may shorten the verdict before it is committed. Also returns the tokens ``[B, M]`` (channel 0) that follow
    the kept nodes: what is new.
    """
    draft = rule.propose(state, law)
    out = lm.verify(state, draft, rule.taps)
    verdict = rule.accept(state, draft, out, law)
    if trim is not None:
        verdict = trim(draft, verdict)
    lm.commit(state, draft, verdict, active)
    kept, tokens, following = _kept(draft, out, verdict)
    rule.read(state, kept, tokens, following, verdict.length * active)
    return draft, verdict, following


def _kept(draft: Draft, out: LMOutput, verdict: Verdict) -> tuple[LMOutput, Tensor, Tensor]:
    """The kept nodes in order: their states, their tokens ``[B, M]`` and the tokens that follow them (channel 0)."""
    path = verdict.path.clamp(min=0)
    tokens = draft.tokens[..., 0].gather(1, path)
    after = torch.cat([tokens[:, 1:], verdict.next[:, :1]], 1)
    last = torch.arange(path.shape[1], device=path.device) == verdict.length[:, None] - 1
    following = torch.where(last, verdict.next[:, :1], after)
    index = path[..., None, None].expand(-1, -1, *out.hidden.shape[2:])
    return LMOutput(out.hidden.gather(1, index)), tokens, following


def start(
    lm: GroupLM,
    units: TextUnits,
    timbre: Tensor,
    sampling: Sampling,
    rule: DecodingRule | None = None,
    seeds: Tensor | None = None,
) -> Run:
    """A run over the rows of ``units`` with voices ``timbre [B, E]``; ``seeds [B]`` default to the sampling's."""
    law = SpeechLaw(lm, sampling, seeds_of(sampling, len(timbre), timbre.device) if seeds is None else seeds)
    return Run(lm, lm.prefill(units, timbre), law, rule or Vanilla())


def generate(
    lm: GroupLM, units: TextUnits, timbre: Tensor, sampling: Sampling, seeds: Tensor | None = None
) -> Iterator[Step]:
    """Every step of a whole batch of complete texts."""
    run = start(lm, units, timbre, sampling, seeds=seeds)
    while (made := run.advance()) is not None:
        yield made
