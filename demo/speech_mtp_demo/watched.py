"""Decoding with somebody watching: what every step drafted, and what of it was kept."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from speech_mtp.decoding.base import DecodingRule
from speech_mtp.decoding.laws import Law
from speech_mtp.decoding.text import TextRun, start
from speech_mtp.lm.text_lm import TextLM
from speech_mtp.types import Draft, Emitted, LMOutput, Sampling, Verdict


class Watched(DecodingRule):
    """``rule``, which remembers the newest draft of its first row and the verdict on it."""

    def __init__(self, rule: DecodingRule) -> None:
        self.rule = rule
        self.acceptance, self.taps, self.text_only = rule.acceptance, rule.taps, rule.text_only
        self.draft: Draft | None = None
        self.verdict: Verdict | None = None

    def propose(self, rows: Any, law: Law) -> Draft:
        draft = self.rule.propose(rows, law)
        self.paused = self.rule.paused
        return draft

    def accept(self, rows: Any, draft: Draft, out: LMOutput, law: Law) -> Verdict:
        self.draft, self.verdict = draft, self.rule.accept(rows, draft, out, law)
        return self.verdict

    def begin(self, rows: Any, law: Law) -> None:
        self.rule.begin(rows, law)

    def read(self, rows: Any, law: Law, out: LMOutput, new: Emitted) -> None:
        self.rule.read(rows, law, out, new)

    def picture(self, lm: TextLM, new: list[int]) -> dict[str, Any]:
        """The newest step: ``nodes``, each its text, its parent and whether it was kept, the first being the token that
        was sure already; and the ``tokens`` that were added, all but the model's own last one drafted."""
        assert self.draft is not None
        assert self.verdict is not None
        parents = self.draft.parents[0].tolist()
        ids = self.draft.tokens[0, :, 0].tolist()
        kept = {i for i in self.verdict.path[0].tolist() if i >= 0}
        real = [i for i in range(len(ids)) if i == 0 or parents[i] >= 0]
        place = {old: place for place, old in enumerate(real)}
        nodes = [{"text": _text(lm, ids[i]), "parent": place.get(parents[i], -1), "kept": i in kept} for i in real]
        drafted = len(kept) - 1
        tokens = [{"text": _text(lm, token), "drafted": i < drafted} for i, token in enumerate(new)]
        return {"nodes": nodes, "tokens": tokens}


def _text(lm: TextLM, token: int) -> str:
    return str(lm.tokenizer.decode([token]))


@dataclass
class Lane:
    """One way to decode a prompt, step by step. ``seconds`` are those of its own steps, without reading the prompt."""

    head: str
    rule: str
    run: TextRun
    watched: Watched
    seconds: float = 0.0
    tokens: int = 0
    steps: list[dict[str, Any]] = field(default_factory=list)
    over: bool = False

    def advance(self) -> None:
        """One step, or the end."""
        began = time.perf_counter()
        new = self.run.advance()
        self.seconds += time.perf_counter() - began
        if new is None:
            self.over = True
            return
        self.tokens += len(new[0])
        self.steps.append(self.watched.picture(self.run.lm, new[0]))
        self.over = self.run.finish[0] is not None

    def told(self, since: int) -> dict[str, Any]:
        """How far it is, with the steps from number ``since`` on."""
        forwards = len(self.steps)
        return {
            "head": self.head,
            "rule": self.rule,
            "steps": self.steps[since:],
            "tokens": self.tokens,
            "forwards": forwards,
            "tokens_per_forward": self.tokens / forwards if forwards else None,
            "tokens_per_s": self.tokens / self.seconds if self.seconds else None,
            "over": self.over,
        }


def lane(lm: TextLM, prompt: list[int], head: str, name: str, rule: DecodingRule, max_new_tokens: int) -> Lane:
    """A lane whose prompt has been read; greedy, so that all lanes of a prompt write the same."""
    watched = Watched(rule)
    run = start(lm, [prompt], Sampling(temperature=0), watched, max_new_tokens)
    return Lane(head, name, run, watched)
